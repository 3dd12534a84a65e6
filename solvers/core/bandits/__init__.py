"""Learning which setting pays: bandits, with and without a context."""
