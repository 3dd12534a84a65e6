"""Entropic optimal transport: Sinkhorn and Sinkhorn-Newton-Sparse."""
