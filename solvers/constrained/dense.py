"""Dense KKT systems by elimination without pivoting: the pivots tell the inertia for nothing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from ..core.precision import dot, eps, matmul
from ..core.typing import Array, Float
from .kkt import KKT, Answer, Multipliers, Question, unit

SWEPT = 16
"""Systems up to this size are inverted by sweeps, one kernel a pivot; larger ones by Cholesky factorisation."""


class DenseModel(NamedTuple):
    """H and G as matrices."""

    H: Float[Array, "n n"]
    G: Float[Array, "m n"]

    def hessian(self, v):
        """Return ``H v``."""
        return matmul(self.H, v)

    def jacobian(self, v):
        """Return ``G v``."""
        return matmul(self.G, v)

    def adjoint(self, u):
        """Return ``G'u``."""
        return matmul(u, self.G)


class DenseKKT(KKT):
    """Solve KKT systems with two Cholesky factorisations (sweeps when small) and one step of refinement.

    Notes
    -----
    ``K = H + shift I + rho G'G`` has positive pivots exactly when the shifted Hessian is positive definite on the null
    space of G, once rho is large; the Schur complement ``G K^-1 G' + d I`` then is positive definite thanks to the
    damping d. A pivot of the wrong sign raises the shift eightfold; a multiplier step out of proportion, the mark of
    dependent constraint gradients, raises d. Cost ``n^3/3 + n^2 m + m^3/3`` a factorisation.
    """

    def model(self, problem, x, sigma, mu):
        """Return H and G from n forward-over-reverse products."""
        return DenseModel(*jax.jacfwd(lambda x: problem.gradient(x, sigma, mu))(x))

    def row_norms(self, model, m, dtype):
        """Return the exact norms."""
        return jnp.sqrt(jnp.sum(model.G**2, axis=1))

    def multipliers(self, model, g):
        """Solve the regularised normal equations ``(GG' + d I) u = -G g``, refined once."""
        G, m = model.G, model.G.shape[0]
        if m == 0:
            return Multipliers(jnp.zeros(0, g.dtype), jnp.zeros((), bool))
        size = dot(G, G)
        gram = matmul(G, G.T)
        d = eps(g.dtype) ** 0.75 * jnp.where(size > 0, size, 1)
        factor, pivot = factorise(gram + d * jnp.eye(m, dtype=g.dtype), jnp.zeros((0, m), g.dtype), d)
        r = -matmul(G, g)
        u, _ = back_substitute(factor, r, r[:0])
        u = u + back_substitute(factor, r - matmul(gram, u) - d * u, r[:0])[0]
        return Multipliers(jnp.where(jnp.isfinite(u), u, 0), pivot <= 10 * m * d)

    def solve(self, model, ask: Question, penalties):
        """Raise shift and damping until the system is convex and the multipliers tame."""
        H, G = model
        (m, n), dtype = G.shape, H.dtype
        size_h = jnp.sqrt(dot(H, H))
        size_g = dot(G, G) / max(m, 1)
        size_g = jnp.where(size_g > 0, size_g, 1)
        scale = jnp.where(size_h > 0, size_h, jnp.where(ask.hint > 0, ask.hint, 1))
        penalty = eps(dtype) ** -0.25 * scale / size_g
        least = jnp.maximum(1e-3 * size_h, jnp.where(ask.hint > 0, 0, eps(dtype) ** 0.375))
        first = jnp.maximum(ask.hint / 3, least)
        identity = jnp.eye(n, dtype=dtype)

        def weights(damping):
            """Return rho, and the square root of ``1 - rho damping`` that makes the condensed system symmetric."""
            rho = jnp.where(ask.penalised, 1, jnp.minimum(penalty, 0.5 / damping))
            return rho, jnp.sqrt(jnp.where(ask.penalised, 0, 1 - rho * damping))

        def apply(factor, damping, rx, rc):
            rho, half = weights(damping)
            dx, w = back_substitute(factor, rx + rho * matmul(rc, G), half * rc)
            return dx, w / jnp.where(half > 0, half, 1)

        def attempt(carry):
            shift, damping, _, _, _, _, tries = carry
            rho, half = weights(damping)
            K = H + shift * identity + rho * matmul(G.T, G)
            factor, pivot = factorise(K, half * G, damping)
            convex = pivot > jnp.maximum(0.1 * shift, 10 * n * eps(dtype) * jnp.max(jnp.abs(K), initial=0))

            def refine(_, z):
                dx, dlam = z
                ex = ask.rx - matmul(H, dx) - shift * dx - matmul(dlam, G)
                ec = ask.rc - matmul(G, dx) + damping * dlam
                cx, clam = apply(factor, damping, ex, ec)
                return dx + cx, dlam + clam

            # The first sweep solves, the second refines; the penalised system needs no refinement.
            sweeps = jnp.where(ask.penalised, 1, 2)
            dx, dlam = lax.fori_loop(0, sweeps, refine, (jnp.zeros(n, dtype), jnp.zeros(m, dtype)))
            tame = ask.penalised | (dot(dlam, dlam) <= ask.bound**2) | (damping > size_g)
            raised = jnp.where(shift > 0, 8 * shift, first)
            damping = jnp.where(convex & ~tame, 30 * damping, damping)
            return jnp.where(convex, shift, raised), damping, dx, dlam, factor, convex & tame, tries + 1

        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        damping = jnp.where(ask.penalised, 1, eps(dtype) ** 0.5 / penalty)
        blank = blank_factor(n, m, dtype)
        start = (zero, damping, jnp.zeros(n, dtype), jnp.zeros(m, dtype), blank, jnp.zeros((), bool), none)
        shift, damping, dx, dlam, factor, valid, tries = lax.while_loop(lambda s: ~s[5] & (s[6] < 40), attempt, start)

        def power(carry):
            v, k = carry
            return unit(apply(factor, damping, v, jnp.zeros(m, dtype))[0]), k + 1

        wanted = ask.explore & (shift > 0)
        v, _ = lax.while_loop(lambda s: wanted & (s[1] < 6), power, (start_vector(n, dtype), none))
        gv = matmul(G, v)
        curvature = dot(v, matmul(H, v)) + jnp.where(ask.penalised, dot(gv, gv), 0)
        found = wanted & (curvature < -(eps(dtype) ** 0.5) * size_h)
        # The multipliers of a shifted system mean nothing: aim at least squares instead.
        dlam = jnp.where((shift > 0) & ~ask.penalised, ask.dual, dlam)
        valid = valid & jnp.all(jnp.isfinite(dx)) & jnp.all(jnp.isfinite(dlam))
        return Answer(dx, dlam, shift, valid, jnp.where(found, v, 0), jnp.where(found, curvature, 0), tries)

    def implicit(self, matvec, b, n):
        """Factorise the matrix of `matvec` with a little damping, and refine twice."""
        A = jax.vmap(matvec)(jnp.eye(b.shape[0], dtype=b.dtype))
        H, G = A[:n, :n], A[n:, :n]
        size_h, size_g = jnp.sqrt(dot(H, H)), dot(G, G) / max(G.shape[0], 1)
        rho = eps(b.dtype) ** -0.25 * jnp.where(size_h > 0, size_h, 1) / jnp.where(size_g > 0, size_g, 1)
        damping = eps(b.dtype) ** 0.5 / rho
        factor, _ = factorise(H + rho * matmul(G.T, G), G, damping)

        def apply(r):
            dx, w = back_substitute(factor, r[:n] + rho * matmul(r[n:], G), r[n:])
            return jnp.concatenate([dx, w / (1 - rho * damping)])

        z = apply(b)
        z = z + apply(b - matmul(A, z))
        return z + apply(b - matmul(A, z))


class Factor(NamedTuple):
    """A factorised quasi-definite matrix: its inverse when small, else Cholesky factors of K and its complement."""

    primal: Array
    dual: Array
    half: Array


def factorise(K, G, damping) -> tuple[Factor, Array]:
    """Factorise ``[[K, G'], [G, -damping I]]``; also return the smallest pivot of K, not positive if indefinite."""
    n, m = K.shape[0], G.shape[0]
    identity = jnp.eye(m, dtype=K.dtype)
    if n + m <= SWEPT:
        inverse, pivots = sweep(jnp.block([[K, G.T], [G, -damping * identity]]))
        return Factor(inverse, inverse[:0], inverse[:0]), jnp.min(pivots[:n], initial=jnp.inf)
    L = jnp.linalg.cholesky(K)
    half = solve_triangular(L, G.T, lower=True)
    smallest = jnp.min(jnp.diagonal(L)) ** 2
    S = jnp.linalg.cholesky(matmul(half.T, half) + damping * identity)
    return Factor(L, S, half), jnp.where(jnp.isfinite(smallest), smallest, -1)


def blank_factor(n, m, dtype) -> Factor:
    """Return a `Factor` of zeros, of the shapes that `factorise` returns."""
    if n + m <= SWEPT:
        return Factor(jnp.zeros((n + m, n + m), dtype), jnp.zeros((0, n + m), dtype), jnp.zeros((0, n + m), dtype))
    return Factor(jnp.zeros((n, n), dtype), jnp.zeros((m, m), dtype), jnp.zeros((n, m), dtype))


def back_substitute(factor: Factor, rx, rc):
    """Solve with a `Factor`."""
    L, S, half = factor
    n = rx.shape[0]
    if n + rc.shape[0] <= SWEPT:
        z = matmul(L, jnp.concatenate([rx, rc]))
        return z[:n], z[n:]
    y = solve_triangular(L, rx, lower=True)
    w = solve_triangular(S, matmul(y, half) - rc, lower=True)
    w = solve_triangular(S, w, lower=True, trans=1)
    return solve_triangular(L, y - matmul(half, w), lower=True, trans=1), w


def sweep(A):
    """Invert a symmetric quasi-definite matrix by Gauss-Jordan sweeps; return the inverse and the pivots."""
    size = A.shape[0]
    index = jnp.arange(size)

    def pivot_on(k, carry):
        A, pivots = carry
        pivot, row, column = A[k, k], A[k], A[:, k]
        row = row / pivot
        at_row, at_column = (index == k)[:, None], (index == k)[None, :]
        edge = jnp.where(at_row, row[None, :], -(column / pivot)[:, None])
        edge = jnp.where(at_row & at_column, 1 / pivot, edge)
        return jnp.where(at_row | at_column, edge, A - column[:, None] * row[None, :]), pivots.at[k].set(pivot)

    return lax.fori_loop(0, size, pivot_on, (A, jnp.zeros(size, A.dtype)))


def start_vector(n, dtype):
    """Return a fixed vector that no symmetry of a problem is likely to share."""
    return unit(jnp.cos(jnp.arange(1, n + 1, dtype=dtype) ** 2 * 0.7) + 0.1)
