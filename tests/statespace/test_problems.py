"""Instances of the problem files are what their docstrings say."""

import jax
import numpy as np

from solvers.problems.statespace import irregular_wave, marked_sum, wave

from ..conftest import FLOAT


def test_instances_are_what_they_say():
    """The marked sum has one mark in each half and its sum plus one; the wave's hidden share and noise are as asked."""
    sequences, sums = marked_sum(jax.random.key(3), 50, 11, FLOAT)
    values, marks = np.asarray(sequences[..., 0]), np.asarray(sequences[..., 1])
    assert np.all(np.sum(marks[:, :5], 1) == 1)
    assert np.all(np.sum(marks, 1) == 2)
    np.testing.assert_allclose(sums, 1 + np.sum(values * marks, 1), rtol=1e-6)
    data = irregular_wave(jax.random.key(4), 4000, noise=0.3, hidden=0.4, dtype=FLOAT)
    assert np.all(np.diff(data.times) >= 0)
    assert abs(np.mean(data.seen) - 0.6) < 0.04
    assert abs(np.std(np.asarray(data.values - wave(data.times))) - 0.3) < 0.015
