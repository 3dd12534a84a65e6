"""Entropic transport: Sinkhorn, Sinkhorn-Newton-Sparse and the Newton systems it solves."""
