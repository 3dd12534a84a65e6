"""Instances with known answers, shared by tests, benchmarks, notebooks and the tour."""
