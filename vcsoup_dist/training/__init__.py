"""Stage 3: one full-parameter policy per value, with DeepSpeed."""
