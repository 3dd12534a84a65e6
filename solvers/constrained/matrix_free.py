"""KKT systems by MINRES from products with H, G and G' alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core.krylov.cg import cg
from ..core.krylov.minres import minres
from ..core.precision import dot, eps
from ..core.typing import Array, Scalar
from .kkt import KKT, SHIFTS, Answer, seems_at_minimum, start_vector
from .preconditioning import Precondition, Preconditioner


class ProductModel(NamedTuple):
    """H and G as products."""

    hessian: Callable[[Array], Array]
    jacobian: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]


class KrylovKKT(KKT):
    """Solve KKT systems by preconditioned MINRES; nothing of size n^2 is formed.

    Parameters
    ----------
    precondition : callable or Preconditioner, optional
        ``(rx, rc) -> (P^-1 rx, S^-1 rc)`` on flat vectors, with P near H and S near ``G P^-1 G'``, both symmetric
        positive definite; or a recipe for it, `DiagonalPreconditioner` or `NystromPreconditioner`. With the exact P
        and S, MINRES takes three steps.
    forcing : scalar
        A system is solved to ``min(forcing, sqrt(|r|)) |r|`` for the right-hand side r, in the preconditioner's norm.
    max_inner : scalar
        Limit of MINRES steps a system.

    Notes
    -----
    The Hessian is shifted until ``dx'(H + shift I) dx > 0`` for the computed step, the test of Chiang and Zavala. That
    is a test along one direction: unlike `DenseKKT` it does not exclude saddle points. Constraints are not
    scaled. Memory is about a dozen vectors.
    """

    precondition: Precondition | Preconditioner | None = None
    forcing: Scalar = 0.01
    max_inner: Scalar = 2000

    def model(self, problem, x, sigma, mu):
        """Linearise once; each product is then one forward or reverse sweep."""
        _, forward = jax.linearize(lambda x: problem.gradient(x, sigma, mu), x)
        _, reverse = jax.vjp(lambda x: problem.values(x)[1], x)
        return ProductModel(lambda v: forward(v)[0], lambda v: forward(v)[1], lambda u: reverse(u)[0])

    def row_norms(self, model, m, dtype):
        """Return zeros: the rows of G are not at hand, and nothing is scaled."""
        return jnp.zeros(m, dtype)

    def column_sizes(self, model, x, weights):
        """Return the entries of ``G'u`` for a fixed u."""
        return jnp.abs(model.adjoint(weights * start_vector(weights.size, x.dtype)))

    def at_minimum(self, model, c, first):
        """Judge by conjugate gradients with ``H + G'G``."""
        columns = self.column_sizes(model, first, jnp.ones_like(c))

        def product(v):
            return model.hessian(v) + model.adjoint(model.jacobian(v))

        return seems_at_minimum(product, columns, first, model.adjoint(c), dot(c, c))

    def multipliers(self, model, g):
        """Solve the normal equations by preconditioned conjugate gradients."""
        r = -model.jacobian(g)
        plain = model._replace(hessian=lambda v: v)
        joint = self._joint(plain, g.size, r.size, 0.0, 0.0, g.dtype)
        precondition = None if joint is None else lambda u: joint((jnp.zeros_like(g), u))[1]
        tol = eps(g.dtype) ** 0.6 * jnp.sqrt(dot(r, r))
        solved = cg(
            lambda u: model.jacobian(model.adjoint(u)), r, tol=tol, max_steps=self.max_inner, precondition=precondition
        )
        return solved.x

    def solve(self, model, ask, penalties):
        """Raise the shift until the computed step has positive curvature; then, if shifted, solve for dlam alone."""
        dtype = ask.rx.dtype
        damping = jnp.where(ask.penalised, 1, 0).astype(dtype)
        pull = model.adjoint(ask.rc)

        def attempt(carry):
            shift, dx, _, tangential, _, tries, inner = carry
            precondition = self._joint(model, ask.rx.size, ask.rc.size, shift, damping, dtype)
            rhs = ask.rx, jnp.where(tangential, 0, ask.rc)
            # Penalised, dlam = c solves the lower rows: what is left of the upper ones then is what must become small.
            goal = jnp.where(ask.penalised, pull, rhs[0]), jnp.where(ask.penalised, 0, rhs[1])
            size = jnp.sqrt(dot(goal[0], goal[0]) + dot(goal[1], goal[1]))

            def product(z):
                dx, dlam = z
                top = model.hessian(dx) + shift * dx + model.adjoint(dlam)
                return top, model.jacobian(dx) - damping * dlam

            tol = jnp.minimum(self.forcing, jnp.sqrt(size)) * _length(precondition, goal)
            solved = minres(product, rhs, tol=tol, max_steps=self.max_inner, precondition=precondition)
            step, dlam = solved.x
            gdx = model.jacobian(step)
            bend = dot(step, model.hessian(step)) + shift * dot(step, step) + damping * dot(gdx, gdx)
            convex = (bend > eps(dtype) * dot(step, step)) | (size <= 0)
            raised = jnp.where(shift > 0, 8 * shift, jnp.maximum(ask.hint / 3, 1e-4))
            done = convex & (tangential | (shift <= 0) | ask.penalised)
            return (
                jnp.where(convex, shift, raised),
                jnp.where(tangential, dx, step),
                dlam,
                tangential | convex,
                done,
                tries + 1,
                inner + solved.num_steps,
            )

        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        no = jnp.zeros((), bool)
        first = (zero, jnp.zeros_like(ask.rx), jnp.zeros_like(ask.rc), ask.renew, no, none, none)

        def unfinished(carry):
            *_, done, tries, _ = carry
            return ~done & (tries < SHIFTS)

        end = lax.while_loop(unfinished, attempt, first)
        shift, dx, dlam, _, done, _, inner = end
        valid = done & jnp.all(jnp.isfinite(dx)) & jnp.all(jnp.isfinite(dlam))
        return Answer(dx, dlam, shift, valid, no, jnp.zeros_like(dx), zero, inner)

    def implicit(self, matvec, b, n):
        """Solve to nearly full precision by MINRES."""

        def split(z):
            z = matvec(jnp.concatenate(z))
            return z[:n], z[n:]

        nothing = jnp.zeros_like(b)
        model = ProductModel(
            lambda v: matvec(nothing.at[:n].set(v))[:n],
            lambda v: matvec(nothing.at[:n].set(v))[n:],
            lambda u: matvec(nothing.at[n:].set(u))[:n],
        )
        precondition, start = self._joint(model, n, b.size - n, 0.0, 0.0, b.dtype), (b[:n], b[n:])
        tol = eps(b.dtype) ** 0.75 * _length(precondition, start)
        return jnp.concatenate(
            minres(split, start, tol=tol, max_steps=10 * self.max_inner, precondition=precondition).x
        )

    def _joint(self, model, n, m, shift, damping, dtype):
        given = self.precondition
        if isinstance(given, Preconditioner):
            given = given.build(model, n, m, shift=shift, damping=damping, dtype=dtype)
        return None if given is None else lambda r: given(*r)


def _length(precondition, r):
    """Return the norm of `r` that MINRES measures residuals in."""
    scaled = r if precondition is None else precondition(r)
    return jnp.sqrt(dot(r[0], scaled[0]) + dot(r[1], scaled[1]))
