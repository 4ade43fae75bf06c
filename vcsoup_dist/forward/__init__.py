"""The one way to run a transformer over ragged text."""
