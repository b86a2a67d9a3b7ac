"""What is wrong with the normalization of a model, which layer is to blame, and what to do."""
