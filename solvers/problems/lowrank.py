"""Instances of low-rank recovery, with the matrix that was measured."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Measured(NamedTuple):
    """Inner products with given matrices, some of them wrong, and the matrix they came from.

    Attributes
    ----------
    matrices : Float[Array, "m n p"]
    values : Float[Array, "m"]
        ``<A_i, X>``, or anything where `wrong`.
    truth : Float[Array, "n p"]
        X.
    wrong : Bool[Array, "m"]
    """

    matrices: Any
    values: Any
    truth: Any
    wrong: Any


def gaussian(
    seed: int, count: int, shape: tuple[int, int], rank: int, *, outliers: float = 0.0, symmetric: bool = False
) -> Measured:
    """Return Gaussian measurements of a random matrix of spectral norm one, a share replaced by numbers of size 100."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((shape[0], rank))
    truth = left @ (left if symmetric else rng.standard_normal((shape[1], rank))).T
    truth = truth / np.linalg.norm(truth, 2)
    matrices = rng.standard_normal((count, *shape))
    values = np.einsum("mij,ij->m", matrices, truth)
    wrong = rng.random(count) < outliers
    values[wrong] += 100 * rng.standard_normal(wrong.sum())
    return Measured(matrices, values, truth, wrong)


class Table(NamedTuple):
    """Entries of a matrix of low rank.

    Attributes
    ----------
    rows, cols : Int[Array, "m"]
    values : Float[Array, "m"]
    truth : Float[Array, "n p"]
    """

    rows: Any
    cols: Any
    values: Any
    truth: Any


def entries(seed: int, shape: tuple[int, int], rank: int, share: float) -> Table:
    """Return a random share of the entries of a random matrix of that rank."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    rows, cols = np.nonzero(rng.random(shape) < share)
    return Table(rows, cols, truth[rows, cols], truth)
