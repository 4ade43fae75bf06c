"""Stage 1: canonical pairs, and one reward per value for each of them, by Ray actors."""
