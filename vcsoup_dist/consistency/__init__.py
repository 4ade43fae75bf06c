"""Stage 2: which pairs do the rewards of all values agree on."""
