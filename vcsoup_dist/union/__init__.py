"""The union of all datasets' pairs, and what every value says of them."""
