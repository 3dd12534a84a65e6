"""Random estimates with their errors: traces, diagonals, spectra; and eigenpairs."""
