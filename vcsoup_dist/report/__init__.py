"""Stage 6: fronts, intervals, hypervolumes, plots and the page."""
