"""What is said of a run: done, running, waiting, failed, and why."""
