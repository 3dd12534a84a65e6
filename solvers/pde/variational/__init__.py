"""Minimising discretised energies in the inner product of H1."""
