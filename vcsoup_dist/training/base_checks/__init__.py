"""What a base model must be before ranks start; `check.py` is the entry."""
