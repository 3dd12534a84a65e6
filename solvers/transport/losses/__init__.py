"""Losses built on transport: divergences, gaps, fitted maps."""
