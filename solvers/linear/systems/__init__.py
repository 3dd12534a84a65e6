"""Linear systems as the solvers see them: dense, matrix-free, stencils, sparse rows."""
