"""Sequences of linear systems whose setting is learned from the step counts."""
