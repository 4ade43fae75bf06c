"""The weighted sum of raw bytes, correctly rounded: in C, in numpy, and exact."""
