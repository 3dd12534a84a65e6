"""Entropic transport: Sinkhorn and Sinkhorn-Newton-Sparse."""
