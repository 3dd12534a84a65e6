"""Linear systems, one or a sequence: relaxation, preconditioned conjugate gradients, multigrid, learned settings."""
