"""Variational solvers: a quadratic data term plus anything with a proximal map."""
