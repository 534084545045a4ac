"""Sparse autoencoders of a model: trained for every head at once, judged on held-out text, compared, looked into."""
