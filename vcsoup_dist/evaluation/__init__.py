"""Stage 5: answers of every soup, their rewards, the Pareto front and the report."""
