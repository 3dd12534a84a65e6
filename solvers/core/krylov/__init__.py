"""Krylov methods on pytrees; each says how far it came and why it stopped."""
