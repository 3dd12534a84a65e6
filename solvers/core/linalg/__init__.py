"""Dense and structured linear algebra: random sketches, Kronecker products."""
