"""Layers that map functions to functions, whatever the points they are given on."""
