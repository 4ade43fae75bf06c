"""Recipe -> products: what is made, from what, by which stage."""
