"""The stages in a table, the graph of products that a recipe asks for, and what makes it."""
