"""The files that stages exchange, a dataclass with a version each."""
