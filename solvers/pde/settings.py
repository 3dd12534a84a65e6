"""How a differential equation is to be solved: the settings of `gp_solve` as one thing."""

from __future__ import annotations

from typing import Any

import equinox as eqx

from ..core.loop import Limits

DENSE = 1200
"""Unknowns up to which a problem in several dimensions is factorised densely when it is not separable."""


class Settings(eqx.Module):
    """What `gp_solve` was asked for beside the problem; see its parameters. Arrays are traced, all else is static.

    ``limits.tol`` may be None: the default depends on how the problem is solved. `dense` is as `DENSE`, more where
    iterations on that many have failed.
    """

    grid: tuple[Any, ...]
    guess: Any
    prior: Any
    infer: Any
    learn: str | None
    basis: str
    rank: Any
    published: Any
    limits: Limits
    unconverged: str
    dense: int = eqx.field(static=True, default=DENSE)

    @property
    def conditions(self) -> bool:
        """Whether the settings alone ask for a prior to be conditioned."""
        given = self.prior is not None or self.infer is not None or self.learn is not None
        return given or self.basis == "kernel" or any(not isinstance(n, int) for n in self.grid)

    def within(self, tol: Any) -> Limits:
        """Return the limits, with `tol` for a tolerance that was left out."""
        given = self.limits
        return given if given.tol is not None else Limits(tol, given.max_steps, given.history, given.progress)
