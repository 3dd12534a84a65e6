"""A coarse space for the Newton systems: the modes in which mass moves slowest, kept from step to step.

Conjugate gradients on the graph Laplacian S of a plan are slow where groups of points exchange little mass: arcs of a
ring, clusters. With ``T = D_r^-1/2 P D_c^-1 P' D_r^-1/2``, whose eigenvalues lie in [0, 1], those modes are T's leading
ones, ``S = D_r^1/2 (I - T) D_r^1/2``. A block of them costs little more to multiply than one vector, changes little
from one Newton step to the next, and so needs one or two subspace iterations a step:

(1) ``V <- orth(T V)``

(2) ``M^-1 = D^-1 + U (U' (S + lam D_r) U)^-1 U'`` with ``U = D_r^-1/2 V``:

two-level additive preconditioning with the diagonal D that conjugate gradients had before.

References
----------
.. [1] Y. Saad, "Numerical methods for large eigenvalue problems", SIAM 2011, section 5.2, for (1).
.. [2] J. M. Tang, R. Nabben, C. Vuik, Y. A. Erlangga, "Comparison of two-level preconditioners derived from deflation,
   domain decomposition and multigrid methods", J. Sci. Comput. 39 (2009), for (2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from ...core.loop import when
from ...core.precision import eps, matmul
from ...core.typing import Array, Bool, Float, Int

MODES = 32
"""Modes kept."""
TIRED = 24
"""Conjugate-gradient steps a Newton step from which on the coarse space pays for its products."""
MISSES = 2
"""After so many steps that were slow with it too, it is given up: there are more slow modes than it holds."""
FIRST, LATER = 5, 2
"""Subspace iterations (1) of a random start, and of the modes of the step before."""


class SlowModes(eqx.Module):
    """Approximate leading modes of T.

    Attributes
    ----------
    basis : Float[Array, "n k"]
        V, of orthonormal columns.
    wanted : Bool[Array, ""]
        Whether a step was slow without it, and few were with it.
    age, misses : Int[Array, ""]
        Newton steps in which V was improved, and those of them that were slow all the same.
    """

    basis: Float[Array, "n k"]
    wanted: Bool[Array, ""]
    age: Int[Array, ""]
    misses: Int[Array, ""]

    @classmethod
    def random(cls, n: int, dtype) -> "SlowModes":
        """Return a start without meaning."""
        basis = jax.random.normal(jax.random.key(29), (n, min(MODES, n)), dtype)
        none = jnp.zeros((), jnp.int32)
        return cls(basis, jnp.zeros((), bool), none, none)

    def after(self, cg_steps: Int[Array, ""]) -> "SlowModes":
        """Return the modes after a Newton step that took `cg_steps` conjugate-gradient steps."""
        slow = cg_steps > TIRED
        misses = self.misses + (self.wanted & slow).astype(jnp.int32)
        return SlowModes(self.basis, (self.wanted | slow) & (misses < MISSES), self.age, misses)


class Coarse(eqx.Module):
    """The correction ``x -> U E^-1 U' x`` of (2)."""

    basis: Float[Array, "n k"]
    weighted: Float[Array, "n k"]

    def __call__(self, x):
        """Return the correction of a residual."""
        return matmul(self.weighted, matmul(x, self.basis))


def coarse(modes: SlowModes, products: Callable[[Any], Any], r, live, lam) -> tuple[SlowModes, Coarse]:
    """Improve the modes where the step before was slow, and return them with their correction, which is zero elsewhere.

    `products` maps a block ``X`` to ``P D_c^-1 P' X``.
    """
    scale = jnp.where(live, lax.rsqrt(jnp.where(live, r, 1)), 0)[:, None]

    def times(V):
        return scale * products(scale * V)

    def improved(carry):
        modes, _ = carry
        trips = jnp.where(modes.age == 0, FIRST, LATER)
        # (1)
        V = lax.fori_loop(0, trips, lambda _, V: orthonormal(times(V)), modes.basis)
        E = (1 + lam) * matmul(V.T, V) - matmul(V.T, times(V))
        k = V.shape[1]
        E = (E + E.T) / 2 + 100 * eps(V.dtype) * jnp.eye(k, dtype=V.dtype)
        inverse = jnp.linalg.inv(jnp.linalg.cholesky(E))
        U = scale * V
        weighted = matmul(matmul(U, inverse.T), inverse)
        fine = jnp.all(jnp.isfinite(weighted))
        kept = SlowModes(jnp.where(fine, V, modes.basis), modes.wanted, modes.age + 1, modes.misses)
        # (2)
        return kept, Coarse(jnp.where(fine, U, 0), jnp.where(fine, weighted, 0))

    nothing = Coarse(jnp.zeros_like(modes.basis), jnp.zeros_like(modes.basis))
    return when(modes.wanted, improved, (modes, nothing))


def orthonormal(V: Array) -> Array:
    """Return an orthonormal basis of the columns' span, by Cholesky of the Gram matrix, shifted by what rounding is."""
    V = V / jnp.maximum(jnp.sqrt(jnp.sum(V**2, 0, keepdims=True)), eps(V.dtype) ** 2)
    gram = matmul(V.T, V)
    root = jnp.linalg.cholesky(gram + 100 * eps(V.dtype) * jnp.eye(gram.shape[0], dtype=V.dtype))
    return solve_triangular(root, V.T, lower=True).T
