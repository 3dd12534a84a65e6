"""Multigrid cycles: coarsening of grids and of sparse matrices, smoothers, transfers."""
