"""What every solver returns: a value, why it stopped, and how good it is."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import numpy as np

from .typing import Array, Float, Int


class StatusCode(IntEnum):
    """Base of status enumerations: each member is ``code, message``.

    A family that stops for reasons of its own subclasses this with codes from 100 upwards and names the class in
    its solution's ``statuses``.
    """

    message: str

    def __new__(cls, code: int, message: str = "") -> Self:
        """Make a member from ``code, message``."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.message = message
        return member


class Status(StatusCode):
    """Why a solver stopped; ``Status(code).message`` says what to try next."""

    RUNNING = -1, "still running"
    CONVERGED = 0, "converged"
    MAX_STEPS = 1, "max_steps reached; raise `max_steps`, loosen `tol`, or start closer"
    STAGNATED = 2, "stagnated: the error no longer falls; loosen `tol`, or use float64 where data are float32"
    NONFINITE = 3, "nonfinite: NaN or infinity in the data or the iterates; check the inputs"
    DIVERGED = 4, "diverged: the error grows without bound; choose a safer setting"
    INFEASIBLE = 5, "infeasible: no point near this one satisfies the constraints; try another start"
    UNBOUNDED = 6, "unbounded: the objective falls without limit"


class SolveError(RuntimeError):
    """Raised by `Solution.check` when a solve did not converge."""


class Solution(eqx.Module):
    """The answer of a solver, a pytree of arrays; batched by ``jax.vmap`` like any other.

    Attributes
    ----------
    value : PyTree
        The best point seen; finite whenever a finite point was seen.
    status : Int[Array, ""]
        0 when converged; ``Status(code)`` decodes the others.
    num_steps : Int[Array, ""]
        Steps taken.
    error : Float[Array, ""]
        The solver's stopping measure at `value`; its docstring gives the formula.
    tol : Float[Array, ""]
        The tolerance that `error` was compared with.
    history : Float[Array, "length"] or None
        Error after 0, 1, 2, ... steps when asked for, NaN beyond the last step.
    """

    value: Any
    status: Int[Array, "..."]
    num_steps: Int[Array, "..."]
    error: Float[Array, "..."]
    tol: Float[Array, "..."]
    history: Float[Array, "..."] | None

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status,)

    @property
    def converged(self):
        """Whether ``error <= tol`` was reached; a boolean array, one entry a lane."""
        return self.status == int(Status.CONVERGED)

    @property
    def message(self) -> str:
        """Why the solve stopped and what to try; for a batch, of its worst lane. Host only."""
        self._on_host("message")
        return self._decode(int(np.ravel(self.status)[self._worst_lane()])).message

    def check(self) -> Self:
        """Return the solution, or raise `SolveError` where a lane did not converge. Host only."""
        self._on_host("check()")
        if not np.all(np.asarray(self.status) == Status.CONVERGED):
            raise SolveError(f"{self}\n{self.message}")
        return self

    def _on_host(self, what: str) -> None:
        if not _is_concrete(self.status):
            raise TypeError(
                f"{type(self).__name__}.{what} looks at numbers, which inside jax.jit, jax.vmap or jax.grad are not "
                "known yet: call it on the result outside, or branch on the array `.converged` inside"
            )

    @classmethod
    def _decode(cls, code: int) -> StatusCode:
        for statuses in cls.statuses:
            if code in [int(s) for s in statuses]:
                return statuses(code)
        raise ValueError(f"{cls.__name__}: unknown status code {code}")

    def _vmapped(self, function: Callable) -> Callable:
        """Return a function of one lane as one of the batch."""
        for _ in range(np.ndim(self.status)):
            function = jax.vmap(function)
        return function

    def _worst_lane(self) -> int:
        failed = np.ravel(self.status) != Status.CONVERGED
        error = np.nan_to_num(np.ravel(self.error).astype(float), nan=np.inf, posinf=np.inf)
        return int(np.lexsort((error, failed))[-1])

    def __repr__(self) -> str:
        name = type(self).__name__
        if not all(_is_concrete(x) for x in (self.status, self.error)):
            return f"{name}(traced)"
        lane = self._worst_lane()
        error, tol = (_number(np.ravel(x)[min(lane, np.size(x) - 1)]) for x in (self.error, self.tol))
        status = self._decode(int(np.ravel(self.status)[lane]))
        if np.ndim(self.status) == 0:
            how = "converged" if status == Status.CONVERGED else status.message.split(";")[0].split(":")[0]
            return f"{name}: {how} in {int(self.num_steps)} steps, error {error} (tol {tol})"
        total, good = np.size(self.status), int(np.sum(np.asarray(self.status) == Status.CONVERGED))
        reason = "" if status == Status.CONVERGED else f" ({status.name.lower()})"
        return f"{name}: {good} of {total} converged; worst error {error} in lane {lane}{reason}"


def _number(x) -> str:
    return f"{float(x):.1e}"


def _is_concrete(x) -> bool:
    try:
        np.asarray(x)
    except Exception:
        return False
    return True
