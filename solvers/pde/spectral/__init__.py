"""The noise-free solve: one-dimensional bases, trial functions, resolution, Newton's method."""
