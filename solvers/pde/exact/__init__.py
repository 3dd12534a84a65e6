"""Exact equations with noisy or missing data: completion, prior of what is open, the solve, the answer."""
