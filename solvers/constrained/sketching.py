"""Sketch-and-project: the randomised iterative solver of the paper, alone and as a KKT solver.

After Strohmer and Vershynin (2009), Gower and Richtarik (2015), and Hong et al., ICML 2023, whose constants were read
in the authors' program (L is the Lagrangian):

(1) ``x <- x - A'S (S'A A'S)^-1 S'(A x - b)``
(2) ``B = H + (xi_B + |H|_F) I`` where the smallest eigenvalue of ``Z'H Z`` is below 1e-6, else H
(3) ``|A|_F Psi |r| <= delta |L'|``
(4) ``Psi = 20 max(|B|_F^2, 1) / (min(lambda_min(G G'), 1) min(xi_B, 1))``
(5) ``delta = (1/2 - beta) eta2 / ((1 + eta1 + eta2) Upsilon^2 Psi^2),  Upsilon = max(|G|_F, |H|_F, 1)``

It departs from the authors' program, whose delta is the smallest so far, whose system is tested for descent and gone on
with when the penalties change, and whose residual starts with the wrong sign.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.checks import choice
from ..core.linalg.sketch import SKETCHES, draw
from ..core.precision import dot, eps, matmul
from ..core.typing import Array, Float, Int, Scalar
from .dense import DenseKKT
from .kkt import Answer

XI_B, BETA = 0.1, 0.1


class Projected(NamedTuple):
    """Where `sketch_and_project` ended: the iterate, the norm of its residual and the number of sketches."""

    x: Float[Array, " n"]
    residual: Float[Array, ""]
    num_steps: Int[Array, ""]


def sketch_and_project(
    A: Float[Array, "m n"],
    b: Float[Array, " m"],
    *,
    key: jax.Array,
    sketch: str = "gaussian",
    block: int = 1,
    tol: Scalar = 1e-8,
    max_steps: Scalar = 100_000,
) -> Projected:
    """Solve a consistent linear system by projecting onto the solutions of random sketches of it.

    Each step draws S (m, block) and moves to the nearest point with ``S'A x = S'b``. With one coordinate vector as S
    that is Kaczmarz' method, with a Gaussian vector the paper's other choice.

    Parameters
    ----------
    A, b : Float[Array, "m n"], Float[Array, "m"]
        The system.
    key : PRNG key
    sketch : str
        "gaussian", "kaczmarz", "countsketch" or "srht". Static.
    block : int
        Columns of S. Static.
    tol : scalar
        Stop when ``|A x - b| <= tol``; absolute, traced.
    max_steps : scalar
        Traced.

    Notes
    -----
    The error falls by ``1 - sigma_min^2 / |A|_F^2`` a step in the mean (block 1, rows of equal norm), so a digit costs
    about ``2.3 |A|_F^2 / sigma_min^2`` steps of ``O(m n)`` operations, where MINRES needs at most about 2.3 cond(A)
    products. On every system measured MINRES was cheaper; use this where only sketches of A can be had, at low
    accuracy. It serves `SketchProject` and studies of sketching, without status, history and derivatives: for those
    take a solver of the linear family. A block of size tau deflates about tau of the largest singular values.

    References
    ----------
    Strohmer, Vershynin, J. Fourier Anal. Appl. 15 (2009); Gower, Richtarik, SIAM J. Matrix Anal. Appl. 36 (2015).
    """
    choice("sketch_and_project", "sketch", sketch, SKETCHES)
    m = A.shape[0]
    ridge = 10 * eps(A.dtype)

    def project(carry):
        x, r, k = carry
        apply = draw(sketch, jax.random.fold_in(key, k), m, block, A.dtype)
        rows, miss = apply(A), apply(r[:, None])[:, 0]
        gram = matmul(rows, rows.T)
        size = jnp.trace(gram)
        gram = gram + (ridge * size + jnp.finfo(A.dtype).tiny) * jnp.eye(block, dtype=A.dtype)
        weights = miss / gram[0, 0] if block == 1 else jax.scipy.linalg.solve(gram, miss, assume_a="pos")
        move = matmul(weights, rows)
        return x - move, r - matmul(A, move), k + 1  # (1)

    def unfinished(carry):
        _, r, k = carry
        return (dot(r, r) > tol**2) & (k < max_steps)

    start = (jnp.zeros(A.shape[1], A.dtype), -b, jnp.zeros((), jnp.int32))
    x, r, k = lax.while_loop(unfinished, project, start)
    return Projected(x, jnp.sqrt(dot(r, r)), k)


class SketchProject(DenseKKT):
    """Solve KKT systems by sketch-and-project, as the paper does: for study, not for speed.

    Parameters
    ----------
    key : PRNG key
    sketch : str
        "gaussian", "kaczmarz", "countsketch" or "srht". Static.
    block : int
        Columns of a sketch; 1 in the paper. Static.
    accuracy : str
        "paper": ``|A|_F Psi |r| <= delta |grad L|``, the paper's rule, which in effect asks for ten digits.
        "adaptive": ``|r| <= min(0.1, |grad L|) |grad L|``. Static.
    max_sketches : scalar
        Limit of one solve.

    Notes
    -----
    Shifts follow the paper, ``0.1 + |H|_F`` where the reduced Hessian has an eigenvalue below 1e-6, and nothing is
    scaled. The restoration of infeasible iterates, of which the paper has none, is that of `DenseKKT`.
    """

    key: jax.Array
    sketch: str = eqx.field(static=True, default="gaussian")
    block: int = eqx.field(static=True, default=1)
    accuracy: str = eqx.field(static=True, default="paper")
    max_sketches: int = 100_000

    def __check_init__(self):
        choice("SketchProject", "sketch", self.sketch, SKETCHES)
        choice("SketchProject", "accuracy", self.accuracy, ("paper", "adaptive"))

    def row_norms(self, model, m, dtype):
        """Return zeros: the paper scales nothing."""
        return jnp.zeros(m, dtype)

    def solve(self, model, ask, penalties):
        """Sketch until the paper's accuracy is reached."""
        exact = super().solve

        def sketched(_):
            H, G = model
            (m, n), dtype = G.shape, H.dtype
            size_h = jnp.sqrt(dot(H, H))
            # (2)
            shift = jnp.where(smallest_reduced_eigenvalue(H, G) < 1e-6, XI_B + size_h, 0).astype(dtype)
            B = H + shift * jnp.eye(n, dtype=dtype)
            A = jnp.block([[B, G.T], [G, jnp.zeros((m, m), dtype)]])
            rhs = jnp.concatenate([ask.rx, ask.rc])
            target = jnp.sqrt(dot(rhs, rhs))
            if self.accuracy == "paper":
                tol = self.accuracy_factor(A, B, G, size_h, penalties) * target  # (3)
            else:
                tol = jnp.minimum(0.1, target) * target
            key = jax.random.fold_in(self.key, ask.index)
            z, residual, k = sketch_and_project(
                A, rhs, key=key, sketch=self.sketch, block=self.block, tol=tol, max_steps=self.max_sketches
            )
            none, no = jnp.zeros((), dtype), jnp.zeros((), bool)
            return Answer(z[:n], z[n:], shift, jnp.isfinite(residual), no, jnp.zeros(n, dtype), none, k)

        return lax.cond(ask.penalised | ask.renew, lambda _: exact(model, ask, penalties), sketched, None)

    def accuracy_factor(self, A, B, G, size_h, penalties):
        """Return ``delta / (|A|_F Psi)`` with the paper's constants."""
        eta1, eta2 = penalties
        gram = jnp.linalg.eigvalsh(matmul(G, G.T))[0] if G.shape[0] else 1
        # (4)
        psi = 20 * jnp.maximum(dot(B, B), 1) / (jnp.minimum(gram, 1) * min(XI_B, 1))
        upsilon = jnp.maximum(jnp.maximum(jnp.sqrt(dot(G, G)), size_h), 1)
        delta = (0.5 - BETA) * eta2 / ((1 + eta1 + eta2) * upsilon**2 * psi**2)  # (5)
        return jnp.clip(delta, 1e-6, 0.1) / (jnp.sqrt(dot(A, A)) * psi)


def smallest_reduced_eigenvalue(H, G):
    """Return the smallest eigenvalue of ``Z'H Z`` for an orthonormal basis Z of the null space of G."""
    m = G.shape[0]
    if m >= H.shape[0]:
        return jnp.asarray(jnp.inf, H.dtype)
    Z = jnp.linalg.qr(G.T, mode="complete")[0][:, m:]
    return jnp.linalg.eigvalsh(matmul(Z.T, matmul(H, Z)))[0]
