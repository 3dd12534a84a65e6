"""Dense KKT systems by elimination without pivoting: the pivots tell the inertia for nothing.

How the system of a `Question` is solved, with rho > 0 and ``half^2 = 1 - rho d``:

(1) ``[[B, G'], [G, -d I]] (dx, dlam) = (rx, rc),  B = H + shift I``
(2) ``[[K, half G'], [half G, -d I]] (dx, half dlam) = (rx + rho G'rc, half rc),  K = B + rho G'G``
(3) ``S = half^2 G K^-1 G' + d I``, the negated complement
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from ..core.accelerator import by_platform
from ..core.linalg import unrolled
from ..core.loop import when
from ..core.precision import dot, eps, matmul
from ..core.typing import Array, Bool, Float, Int
from .kkt import KKT, SHIFTS, Answer, Question, at_minimum, norm, start_vector, unit

SWEPT = 16
"""Systems up to this size are inverted by sweeps, one kernel a pivot; larger ones by Cholesky factorisation."""

RUNGS = 6
"""Shifts that are tried at once where loops are costly."""
FACTORISATIONS = 200
"""Factorisations before a system is given up."""
LARGE = 1e3
"""Where the Hessian needs a shift, multipliers are estimates: damping keeps them below this in the scaled problem."""


class DenseModel(NamedTuple):
    """H and G as matrices."""

    H: Float[Array, "n n"]
    G: Float[Array, "m n"]

    def hessian(self, v):
        """Return ``H v``."""
        return product(self.H, v)

    def jacobian(self, v):
        """Return ``G v``."""
        return product(self.G, v)

    def adjoint(self, u):
        """Return ``G'u``."""
        return product(self.G.T, u)


class DenseKKT(KKT):
    """Solve KKT systems with two Cholesky factorisations (sweeps when small) and one step of refinement.

    Notes
    -----
    ``K = H + shift I + rho G'G`` has positive pivots exactly when the shifted Hessian is positive definite on the null
    space of G, once rho is large; the Schur complement ``G K^-1 G' + d I`` then is positive definite thanks to the
    damping d. A pivot of the wrong sign raises the shift eightfold; a multiplier step out of proportion, the mark of
    dependent constraint gradients, raises d. Cost ``n^3/3 + n^2 m + m^3/3`` a factorisation.
    """

    width: ClassVar[int] = 4

    def model(self, problem, x, sigma, mu):
        """Return H and G from n forward-over-reverse products."""
        return DenseModel(*jax.jacfwd(lambda x: problem.gradient(x, sigma, mu))(x))

    def row_norms(self, model, m, dtype):
        """Return the exact norms."""
        return jnp.sqrt(jnp.sum(model.G**2, axis=1))

    def column_sizes(self, model, x, weights):
        """Return the exact sizes."""
        return jnp.max(jnp.abs(weights[:, None] * model.G), axis=0, initial=0)

    def at_minimum(self, model, c, first):
        """Judge by a factorisation of ``H + G'G``."""
        B = model.H + matmul(model.G.T, model.G)
        return at_minimum(B, self.column_sizes(model, first, jnp.ones_like(c)), first, model.adjoint(c), dot(c, c))

    def multipliers(self, model, g):
        """Solve the regularised normal equations ``(GG' + d I) u = -G g``, refined once."""
        G, m = model.G, model.G.shape[0]
        if m == 0:
            return jnp.zeros(0, g.dtype)
        size = dot(G, G)
        gram = matmul(G, G.T)
        d = eps(g.dtype) ** 0.75 * jnp.where(size > 0, size, 1)
        factor, _, _ = factorise(gram + d * jnp.eye(m, dtype=g.dtype), jnp.zeros((0, m), g.dtype), d)
        r = -matmul(G, g)

        def refine(_, u):
            return u + back_substitute(factor, r - matmul(gram, u) - d * u, m)

        u = lax.fori_loop(0, 2, refine, jnp.zeros_like(r))
        return jnp.where(jnp.isfinite(u), u, 0)

    def solve(self, model, ask: Question, penalties):
        """Raise shift and damping until the system is convex and the multipliers tame."""
        system = System.of(model, ask)
        (m, n), dtype = model.G.shape, model.H.dtype
        zeros = jnp.zeros(n, dtype)
        zero, no, none = jnp.zeros((), dtype), jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        start = Attempt(zero, system.initial, zeros, jnp.zeros(m, dtype), zeros, no, no, no, none)

        def repeated(how: Way):
            def run(system, model, ask, start):
                end = lax.while_loop(
                    lambda done: ~done.tame & (done.tries < FACTORISATIONS),
                    lambda done: attempt(system, model, ask, done, how),
                    start,
                )
                return end._replace(v=how.bent(system, model, ask, end))

            return run

        operands = system, model, ask, start
        if n + m <= unrolled.LARGEST:
            end = by_platform(*operands, cpu=repeated(LOOPED), accelerator=repeated(UNROLLED))
        else:
            end = repeated(LOOPED)(*operands)
        gv = product(model.G, end.v)
        curvature = dot(end.v, product(system.H, end.v)) + jnp.where(ask.penalised, dot(gv, gv), 0)
        found = ask.explore & (end.shift > 0) & (curvature < -(eps(dtype) ** 0.5) * system.size_h)
        return Answer(
            dx=end.dx,
            dlam=end.dlam,
            shift=end.shift,
            valid=end.convex & jnp.all(jnp.isfinite(end.dx)) & jnp.all(jnp.isfinite(end.dlam)),
            deficient=end.deficient & ~ask.penalised,
            v=jnp.where(found, end.v, 0),
            curvature=jnp.where(found, curvature, 0),
            inner=end.tries,
        )

    def implicit(self, matvec, b, n):
        """Factorise the matrix of `matvec` with a little damping, and refine twice."""
        A = jax.vmap(matvec)(jnp.eye(b.shape[0], dtype=b.dtype))
        H, G = A[:n, :n], A[n:, :n]
        size_h, size_g = jnp.sqrt(dot(H, H)), dot(G, G) / max(G.shape[0], 1)
        rho = eps(b.dtype) ** -0.25 * jnp.where(size_h > 0, size_h, 1) / jnp.where(size_g > 0, size_g, 1)
        damping = eps(b.dtype) ** 0.5 / rho
        half = (1 - rho * damping) ** 0.5
        factor, _, _ = factorise(H + rho * matmul(G.T, G), half * G, damping)  # (2)

        def apply(r):
            z = jnp.concatenate([r[:n] + rho * matmul(r[n:], G), half * r[n:]])
            z = back_substitute(factor, z, n)
            return jnp.concatenate([z[:n], z[n:] / half])

        z = apply(b)
        z = z + apply(b - matmul(A, z))
        return z + apply(b - matmul(A, z))


class System(NamedTuple):
    """The system of a `Question` and the scales that go with it."""

    H: Float[Array, "n n"]
    squared: Float[Array, "n n"]
    """``G'G``."""
    size_h: Float[Array, ""]
    size_g: Float[Array, ""]
    penalty: Float[Array, ""]
    """rho, unless the damping bounds it."""
    first: Float[Array, ""]
    """The first shift that is tried."""
    initial: Float[Array, ""]
    """The least damping."""

    @classmethod
    def of(cls, model: DenseModel, ask: Question) -> "System":
        """Read the scales off H and G."""
        (m, n), dtype, G = model.G.shape, model.H.dtype, model.G
        H = jnp.where(ask.renew, jnp.eye(n, dtype=dtype), model.H)
        size_h = jnp.sqrt(dot(H, H))
        size_g = dot(G, G) / max(m, 1)
        size_g = jnp.where(size_g > 0, size_g, 1)
        scale = jnp.where(size_h > 0, size_h, jnp.where(ask.hint > 0, ask.hint, 1))
        penalty = eps(dtype) ** -0.25 * scale / size_g
        unit = jnp.where(ask.penalised & (size_h > 0), jnp.minimum(size_h + dot(G, G), 1), 1)
        least = jnp.maximum(1e-3 * size_h, jnp.where(ask.hint > 0, 0, eps(dtype) ** 0.375 * unit))
        initial = jnp.where(ask.penalised, 1, eps(dtype) ** 0.5 / penalty)
        return cls(H, product(G.T, G), size_h, size_g, penalty, jnp.maximum(ask.hint / 3, least), initial)


class Attempt(NamedTuple):
    """A shift and a damping, the step that they gave, and whether that will do."""

    shift: Float[Array, ""]
    damping: Float[Array, ""]
    dx: Float[Array, " n"]
    dlam: Float[Array, " m"]
    v: Float[Array, " n"]
    deficient: Bool[Array, ""]
    convex: Bool[Array, ""]
    tame: Bool[Array, ""]
    tries: Int[Array, ""]


class Condensed(NamedTuple):
    """A factorised K and complement; rho, and the factor that makes the whole symmetric."""

    factor: "Factor"
    rho: Float[Array, ""]
    half: Float[Array, ""]
    convex: Bool[Array, ""]
    dual_pivot: Float[Array, ""]


class Shifted(NamedTuple):
    """A shift and what it made of the system."""

    shift: Float[Array, ""]
    made: Any
    tries: Int[Array, ""]


def until_convex(factorised: Callable, raised: Callable, shift, most: int) -> Shifted:
    """Factorise with ``raised(shift, tries)`` until ``factorised(shift).convex``, at most so often."""
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(factorised, shift))

    def again(tried: Shifted) -> Shifted:
        higher = raised(tried.shift, tried.tries)
        return Shifted(higher, factorised(higher), tried.tries + 1)

    start = Shifted(shift, blank, jnp.zeros((), jnp.int32))
    return lax.while_loop(lambda tried: ~tried.made.convex & (tried.tries < most), again, start)


class Refined(NamedTuple):
    """The step; the multipliers of a shifted system; a direction of curvature."""

    step: Float[Array, " n+m"]
    own: Float[Array, " n+m"]
    v: Float[Array, " n+m"]


def attempt(system: System, model: DenseModel, ask: Question, before: Attempt, how: "Way") -> Attempt:
    """Find a shift that makes the system convex, solve it, and judge the multipliers: if wild, damp them more."""
    (m, n), damping = model.G.shape, before.damping
    found, more = how.convexified(system, model, ask, before)
    step, own, v = how.refined(system, model, ask, found, damping)
    estimate = (found.shift > 0) | ask.renew
    dlam = jnp.where(estimate, own[n:], step[n:])
    norm_lam = norm(ask.lam)
    bound = jnp.where(estimate, jnp.maximum(LARGE, norm_lam), 10 * jnp.maximum(10, norm_lam))
    size = norm(jnp.where(estimate, ask.lam, 0) + dlam)
    convex = found.made.convex
    tame = ask.penalised | (size <= bound) | (damping > system.size_g) | ~convex
    return Attempt(
        shift=found.shift,
        damping=jnp.where(tame, damping, 1000 * damping),
        dx=step[:n],
        dlam=dlam,
        v=v[:n],
        deficient=(damping > system.initial) | (found.made.dual_pivot <= 10 * m * damping),
        convex=convex,
        tame=tame & ~more,
        tries=before.tries + found.tries,
    )


def refined(system: System, model: DenseModel, ask: Question, found: Shifted, damping) -> Refined:
    """Solve in passes."""
    # Two passes solve and refine; two more, without the constraints' residual, give the multipliers of a shifted
    # system, whose own mean nothing, damped towards zero: along dependent gradients they would grow without limit.
    # Then inverse iteration for a direction of curvature.
    (m, n), dtype = model.G.shape, model.H.dtype
    estimate = (found.shift > 0) | ask.renew
    passes = jnp.where(estimate, jnp.where(ask.explore, 10, 4), 2)
    nothing = jnp.zeros(n + m, dtype)
    start = Refined(nothing, nothing, jnp.concatenate([start_vector(n, dtype), nothing[n:]]))
    return lax.fori_loop(0, passes, lambda k, r: improve(k, r, system, model, ask, found, damping), start)


def weights(system: System, ask: Question, damping):
    """Return rho and half of (2)."""
    rho = jnp.where(ask.penalised, 1, jnp.minimum(system.penalty, 0.5 / damping))
    return rho, jnp.sqrt(jnp.where(ask.penalised, 0, 1 - rho * damping))


def convexified(system: System, model: DenseModel, ask: Question, before: Attempt) -> tuple[Shifted, Array]:
    """Raise the shift eightfold until the pivots say that the system is convex; nothing is left to try then."""
    damping, n, dtype = before.damping, model.H.shape[0], model.H.dtype

    def condense(shift) -> Condensed:
        rho, half = weights(system, ask, damping)
        K = system.H + shift * jnp.eye(n, dtype=dtype) + rho * system.squared  # (2)
        factor, pivot, dual_pivot = factorise(K, half * model.G, damping)
        floor = jnp.maximum(0.1 * shift, 10 * n * eps(dtype) * jnp.max(jnp.abs(K), initial=0))
        return Condensed(factor, rho, half, pivot > floor, dual_pivot)

    def raised(shift, tries):
        return jnp.where(tries == 0, shift, jnp.where(shift > 0, 8 * shift, system.first))

    return until_convex(condense, raised, before.shift, SHIFTS), jnp.zeros((), bool)


def improve(k, so_far: Refined, system: System, model: DenseModel, ask: Question, found: Shifted, damping) -> Refined:
    """Refine what pass k is for: the step in passes 0 and 1, the multipliers in 2 and 3, then the curvature."""
    factor, rho, half, *_ = found.made
    n, G, stage = model.H.shape[0], model.G, k // 2
    z = jnp.where(stage == 0, so_far.step, so_far.own)
    x, u = z[:n], z[n:]
    # (1): its residual, with that of the multipliers damped towards zero in the second stage
    ex = ask.rx - product(system.H, x) - found.shift * x - product(G.T, u)
    ec = jnp.where(stage == 0, ask.rc, damping * ask.lam) - product(G, x) + damping * u
    r = jnp.concatenate([ex + rho * product(G.T, ec), half * ec])  # (2)
    w = back_substitute(factor, jnp.where(stage < 2, r, so_far.v), n)
    better = z + jnp.concatenate([w[:n], w[n:] / jnp.where(half > 0, half, 1)])
    primal = jnp.where(jnp.arange(len(w)) < n, w, 0)
    return Refined(
        step=jnp.where(stage == 0, better, so_far.step),
        own=jnp.where(stage == 1, better, so_far.own),
        v=jnp.where(stage < 2, so_far.v, unit(primal)),
    )


def condensed(system: System, model: DenseModel, ask: Question, shift, damping) -> unrolled.Condensed:
    """Return the matrix of (2) for elimination in scalars."""
    rho, half = weights(system, ask, damping)
    return unrolled.Condensed(system.H, model.G, system.H + rho * system.squared, shift, rho, half, damping)


def convexified_at_once(system: System, model: DenseModel, ask: Question, before: Attempt) -> tuple[Shifted, Array]:
    """Try the next `RUNGS` shifts together, and say whether there is more to try."""
    n, dtype = model.H.shape[0], model.H.dtype
    matrix = condensed(system, model, ask, before.shift, before.damping)
    # before.shift, or zero and the first, and then eightfold
    rung = jnp.arange(RUNGS, dtype=jnp.int32)
    shifts = jnp.where(before.shift > 0, before.shift, system.first / 8) * 8 ** rung.astype(dtype)
    shifts = jnp.where((rung > 0) | (before.shift > 0), shifts, before.shift)
    first, convex, dual = unrolled.first_convex(matrix, shifts, 10 * n * eps(dtype))
    shift = jnp.sum(jnp.where(rung == first, shifts, 0))
    none = jnp.zeros((0, 0), dtype)
    more = ~convex & (before.tries + RUNGS < SHIFTS)
    made = Condensed(Factor(none, none, none), matrix.rho, matrix.half, convex, dual)
    return Shifted(jnp.where(more, 8 * shift, shift), made, first + 1), more


def refined_at_once(system: System, model: DenseModel, ask: Question, found: Shifted, damping) -> Refined:
    """Solve for the step and for the multipliers of a shifted system in the same two passes."""
    matrix = condensed(system, model, ask, found.shift, damping)
    step, own = unrolled.solutions(matrix, [(ask.rx, ask.rc), (ask.rx, damping * ask.lam)], 2)
    return Refined(step, own, jnp.zeros_like(step))


def bent_at_once(system: System, model: DenseModel, ask: Question, end: Attempt) -> Array:
    """Return a direction of curvature, where one is asked for."""
    matrix = condensed(system, model, ask, end.shift, end.damping)
    wanted = ask.explore & ((end.shift > 0) | ask.renew)
    return when(wanted, lambda v: unrolled.inverse_iteration(matrix, v, 6), start_vector(model.H.shape[0], end.v.dtype))


class Way(NamedTuple):
    """How systems are shifted and solved and curvature is found: in loops, or with everything written out."""

    convexified: Callable
    refined: Callable
    bent: Callable


LOOPED = Way(convexified, refined, lambda system, model, ask, end: end.v)
UNROLLED = Way(convexified_at_once, refined_at_once, bent_at_once)


class Factor(NamedTuple):
    """A factorised quasi-definite matrix: its inverse when small, else Cholesky factors of K and its complement."""

    primal: Array
    dual: Array
    half: Array


def factorise(K, G, damping) -> tuple[Factor, Array, Array]:
    """Factorise ``[[K, G'], [G, -damping I]]``; also return the smallest pivots of K and of its negated complement.

    The first is not positive if K is indefinite.
    """
    n, m = K.shape[0], G.shape[0]
    identity = jnp.eye(m, dtype=K.dtype)
    if n + m <= SWEPT:
        inverse, pivots = sweep(jnp.block([[K, G.T], [G, -damping * identity]]))
        factor = Factor(inverse, inverse[:0], inverse[:0])
        return factor, jnp.min(pivots[:n], initial=jnp.inf), jnp.min(-pivots[n:], initial=jnp.inf)
    L = jnp.linalg.cholesky(K)
    half = solve_triangular(L, G.T, lower=True)
    smallest = jnp.min(jnp.diagonal(L)) ** 2
    S = jnp.linalg.cholesky(matmul(half.T, half) + damping * identity)  # (3)
    return (
        Factor(L, S, half),
        jnp.where(jnp.isfinite(smallest), smallest, -1),
        jnp.min(jnp.diagonal(S), initial=jnp.inf) ** 2,
    )


def back_substitute(factor: Factor, r, n):
    """Solve with a `Factor` whose K is (n, n)."""
    L, S, half = factor
    if r.shape[0] <= SWEPT:
        return product(L, r)
    y = solve_triangular(L, r[:n], lower=True)
    w = solve_triangular(S, matmul(y, half) - r[n:], lower=True)
    w = solve_triangular(S, w, lower=True, trans=1)
    return jnp.concatenate([solve_triangular(L, y - matmul(half, w), lower=True, trans=1), w])


def product(A, B):
    """Return ``A @ B``; on accelerators small products are sums, for a library call a lane is slow in a batch."""
    B_ = B if B.ndim == 2 else B[:, None]
    if A.size > SWEPT**2 or B_.size > SWEPT**2 or not A.size or not B.size:
        return matmul(A, B)

    def summed(A, B):
        return jnp.sum(A[:, :, None] * B[None], axis=1)

    return lax.platform_dependent(A, B_, cpu=matmul, default=summed).reshape(A.shape[:1] + B.shape[1:])


def sweep(A):
    """Invert a symmetric quasi-definite matrix by Beaton's sweep operator; return the inverse and the pivots."""
    size = A.shape[0]
    index = jnp.arange(size)

    def pivot_on(k, carry):
        A, pivots = carry
        pivot, column = A[k, k], A[k]
        scaled = column / pivot
        at_row, at_column = (index == k)[:, None], (index == k)[None, :]
        edge = jnp.where(at_row, scaled[None, :], scaled[:, None])
        edge = jnp.where(at_row & at_column, -1 / pivot, edge)
        swept = jnp.where(at_row | at_column, edge, A - scaled[:, None] * column[None, :])
        return swept, jnp.where(index == k, pivot, pivots)

    A, pivots = lax.fori_loop(0, size, pivot_on, (A, jnp.zeros(size, A.dtype)))
    return -A, pivots
