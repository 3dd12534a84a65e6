"""The plan around a pair of potentials, and the Newton systems on it."""
