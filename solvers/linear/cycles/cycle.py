"""The cycle itself: what a level is, and how a residual goes down through the levels and its correction comes up.

With S the smoother and P the interpolation from the next level:

(1) ``z = S r``, then ``left = r - A z``
(2) ``d = P B P' left`` with B this cycle on the next level, ``B = A^-1`` on the coarsest
(3) ``z <- z + d``, then ``z <- z + S'(r - A z)``
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import equinox as eqx

from ...core.precision import matmul
from ...core.typing import Array
from ..systems.system import settle
from .smoothing import Smoother


class Level(eqx.Module):
    """A level above the coarsest: its matrix, and the way to the next one."""

    @abstractmethod
    def mv(self, z: Array) -> Array:
        """Return A z."""

    @abstractmethod
    def scaling(self) -> Array:
        """Return the inverse absolute row sums: scaled by them, the largest eigenvalue is at most one."""

    @abstractmethod
    def restrict(self, r: Array) -> Array:
        """Return ``P' r``."""

    @abstractmethod
    def prolong(self, z: Array) -> Array:
        """Return ``P z``."""


def dense(inverse: Array) -> Callable[[Array], Array]:
    """Return the solve on the coarsest level, one product with its inverse."""
    return lambda r: matmul(inverse, r.ravel()).reshape(r.shape)


def cycle(
    levels: Sequence[Level], smoothers: Sequence[Smoother], coarsest: Callable[[Array], Array], *, twice: bool
) -> Callable[[Array], Array]:
    """Return ``r -> z``, one cycle for ``A z = r`` from zero: symmetric if the levels are.

    `coarsest` solves on the level below the last. With `twice`, the W-cycle, levels between the first and the last are
    visited twice.
    """

    def descend(k: int, r: Array) -> Array:
        if k == len(levels):
            return coarsest(r)  # (2)
        level, smoother = levels[k], smoothers[k]
        z, left = smoother.before(r)  # (1)
        d = level.prolong(descend(k + 1, settle(level.restrict(settle(left)))))  # (2)
        if twice and 0 < k < len(levels) - 1:
            d = settle(d)
            z, left = z + d, settle(left - level.mv(d))
            d = level.prolong(descend(k + 1, settle(level.restrict(left))))
        return settle(smoother.after(z, d, left))  # (3)

    return lambda r: descend(0, r)
