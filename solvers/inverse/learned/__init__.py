"""Learned proximal maps: gradients of convex networks, trained by proximal matching."""
