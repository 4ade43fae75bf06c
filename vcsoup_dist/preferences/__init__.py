"""Preference pairs in their public formats -> one canonical row."""
