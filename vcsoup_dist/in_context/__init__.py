"""Rewards in prompts: a policy learns answers with their scores, and is asked for scores."""
