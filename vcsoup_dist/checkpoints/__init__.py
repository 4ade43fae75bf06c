"""Sharded checkpoints on disk: where their tensors lie, reading parts of them, writing new ones."""
