"""What is said before anything runs: data, rewards, models, steps, memory, time, disk."""
