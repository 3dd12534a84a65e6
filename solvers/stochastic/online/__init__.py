"""Online optimisation against losses that vary little or much."""
