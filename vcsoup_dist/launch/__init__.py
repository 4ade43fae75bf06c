"""Where ranks and actors run."""
