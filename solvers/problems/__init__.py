"""Instances with known answers or known difficulty, shared by tests, benchmarks, notebooks and the tour."""
