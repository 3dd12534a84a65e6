"""Settings to choose from, as data: one compiled program serves them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from ...core.checks import fail, float_array
from ...core.typing import Array, Float, Int
from ..conjugate_gradients import SSORCG, ChebyshevCG
from ..multigrid import MultigridCG
from ..relaxation import SOR
from ..solution import Method

BUILDERS: dict[str, Callable[["Arms", Any], Method]] = {
    "sor": lambda arms, k: SOR(arms.omega[k]),
    "ssor": lambda arms, k: SOR(arms.omega[k], both_ways=True),
    "ssor_cg": lambda arms, k: SSORCG(arms.omega[k]),
    "chebyshev_cg": lambda arms, k: ChebyshevCG(arms.ratio[k], arms.degree[k]),
    "multigrid_cg": lambda arms, k: MultigridCG(arms.ratio[k], "chebyshev", 2, "V"),
}
"""What plays an arm of each method."""


def safe(dtype) -> Method:
    """Return what goes on where an arm has failed: conjugate gradients with Jacobi scaling."""
    return ChebyshevCG(jnp.ones((), dtype), fixed_degree=1)


class Arms(eqx.Module):
    """Settings of the solvers to choose from; join them with ``+``.

    Attributes
    ----------
    kind : Int[Array, "d"]
        Index into `methods`.
    omega, ratio : Float[Array, "d"]
        Settings; those that a method does not have are one.
    degree : Int[Array, "d"]
        The same.
    work : Float[Array, "d"]
        Cost of a step, in products with the matrix; what a learner compares.
    methods : tuple of str
        Static.

    Examples
    --------
    >>> from solvers import Arms
    >>> print(len(Arms.sor(12) + Arms.chebyshev_cg([2, 4, 8], [30.0, 30.0, 100.0])))
    15
    """

    kind: Int[Array, " d"]
    omega: Float[Array, " d"]
    ratio: Float[Array, " d"]
    degree: Int[Array, " d"]
    work: Float[Array, " d"]
    methods: tuple[str, ...] = eqx.field(static=True)

    @classmethod
    def sor(cls, omega: int | Any = 16) -> "Arms":
        """Return arms of `sor`: given values of omega, or that many from 1 to 1.97, even in ``log(2 - omega)``."""
        return cls._relaxations("sor", omega, 1.0)

    @classmethod
    def ssor(cls, omega: int | Any = 16) -> "Arms":
        """Return arms of `ssor`."""
        return cls._relaxations("ssor", omega, 2.0)

    @classmethod
    def ssor_cg(cls, omega: int | Any = 16) -> "Arms":
        """Return arms of `ssor_cg`."""
        return cls._relaxations("ssor_cg", omega, 3.0)

    @classmethod
    def chebyshev_cg(cls, degree: Any, ratio: Any) -> "Arms":
        """Return arms of `chebyshev_cg`, ``degree[k]`` with ``ratio[k]``."""
        degree, ratio = (
            jnp.atleast_1d(jnp.asarray(degree, jnp.int32)),
            jnp.atleast_1d(float_array("Arms", "ratio", ratio)),
        )
        if degree.shape != ratio.shape or degree.ndim != 1:
            fail("Arms.chebyshev_cg", "degree", f"as many as `ratio`, {ratio.shape}", degree.shape)
        return cls._of("chebyshev_cg", jnp.ones_like(ratio), ratio, degree, degree.astype(ratio.dtype))

    @classmethod
    def multigrid_cg(cls, ratio: Any = 4.0) -> "Arms":
        """Return arms of `multigrid_cg` with values of `ratio`."""
        ratio = jnp.atleast_1d(float_array("Arms", "ratio", ratio))
        ones = jnp.ones_like(ratio)
        return cls._of("multigrid_cg", ones, ratio, jnp.full(ratio.shape, 2, jnp.int32), 12 * ones)

    @classmethod
    def _relaxations(cls, method, omega, work):
        if isinstance(omega, int):
            if omega < 1:
                fail(f"Arms.{method}", "omega", "a positive number of arms, or their values", omega)
            omega = 2 - jnp.exp(jnp.linspace(0.0, jnp.log(0.03), omega))
        omega = jnp.atleast_1d(float_array("Arms", "omega", omega))
        ones = jnp.ones_like(omega)
        return cls._of(method, jnp.clip(omega, 1e-3, 1.999), ones, jnp.ones(omega.shape, jnp.int32), work * ones)

    @classmethod
    def _of(cls, method, omega, ratio, degree, work):
        return cls(jnp.zeros(omega.shape, jnp.int32), omega, ratio, degree, work, (method,))

    def __add__(self, other: "Arms") -> "Arms":
        """Join two sets of arms."""
        methods = self.methods + tuple(m for m in other.methods if m not in self.methods)
        place = jnp.asarray([methods.index(m) for m in other.methods], jnp.int32)
        omega, ratio, degree, work = (
            jnp.concatenate([getattr(self, n), getattr(other, n).astype(getattr(self, n).dtype)])
            for n in ("omega", "ratio", "degree", "work")
        )
        return Arms(jnp.concatenate([self.kind, place[other.kind]]), omega, ratio, degree, work, methods)

    def __len__(self) -> int:
        """Return the number of arms."""
        return self.omega.shape[0]

    @property
    def builders(self) -> list[Callable[["Arms", Any], Method]]:
        """What plays an arm of each of `methods`."""
        return [BUILDERS[m] for m in self.methods]

    @property
    def sweeps(self) -> bool:
        """Whether any of the methods needs sweeps."""
        return any(m in ("sor", "ssor", "ssor_cg") for m in self.methods)

    def astype(self, dtype) -> "Arms":
        """Return the arms with their numbers in ``dtype``."""
        values = [getattr(self, n).astype(dtype) for n in ("omega", "ratio", "work")]
        return eqx.tree_at(lambda a: (a.omega, a.ratio, a.work), self, tuple(values))
