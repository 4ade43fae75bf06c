"""A dataset's pairs in tokens, written once for all that trains on them."""
