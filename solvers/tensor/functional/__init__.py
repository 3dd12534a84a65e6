"""Tensors whose axes are functions: Gaussian-process factors, a core, and messages between them."""
