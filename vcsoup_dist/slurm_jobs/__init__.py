"""Products that are due as Slurm jobs, and what the queue has of them."""
