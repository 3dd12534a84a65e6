"""The spectrum of a symmetric operator by stochastic Lanczos quadrature, and extreme eigenpairs by restarts.

Ubaru, Chen and Saad, 2017, for p probes on the sphere, theta and u the eigenpairs of a probe's Lanczos matrix:

(1) ``tr f(A) ~ (n / p) sum_probes sum_k w_k f(theta_k),  w_k = u_k[0]^2``
(2) ``density(x) ~ (1 / p) sum_probes sum_k w_k N(x; theta_k, width^2)``
(3) ``dtheta = u^T dT u,  du_k = sum_j u_j (u_j^T dT u_k) / (theta_k - theta_j)``

Eigenpairs: Wu and Simon, 2000.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core import checks
from ...core.implicit import UNCONVERGED, attach, distrust, envelope, linear_solve
from ...core.krylov.lanczos import Tridiagonal, lanczos
from ...core.krylov.minres import minres
from ...core.loop import Limits, iterate
from ...core.precision import dot, eps, matmul
from ...core.probes import probes
from ...core.solution import Solution, Status
from ...core.typing import Array, Float, Progress, Scalar
from .interval import Estimate, Flat, flattened, shape_of_mean


class SpectralDensity(eqx.Module):
    """Gauss quadratures of the spectral density, one a probe; made by `spectral_density`.

    Attributes
    ----------
    nodes : Float[Array, "probes steps"]
        Ritz values.
    weights : Float[Array, "probes steps"]
        Non-negative, of sum 1 for every probe; 0 behind an early end of a Krylov space.
    size : int
        Number n of eigenvalues.
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]
    size: int = eqx.field(static=True)

    def trace_of(self, function: Callable[[Array], Array]) -> Estimate:
        """Return an estimate of ``tr f(A)``, exact for a probe's share where f is a polynomial of degree < 2 steps."""
        values = jnp.where(self.weights > 0, function(self.nodes), 0)
        samples = self.size * jnp.sum(self.weights * values, axis=1)  # (1)
        count, steps = self.nodes.shape
        mean = jnp.mean(samples)
        error = jnp.sqrt(jnp.sum((samples - mean) ** 2) / max(count - 1, 1) / count)
        error = error if count > 1 else jnp.full_like(mean, jnp.inf)
        products = jnp.asarray(count * steps, jnp.int32)
        return Estimate(mean, error, *shape_of_mean(samples, count), products, jnp.isfinite(mean))

    def moment(self, power: int) -> Estimate:
        """Return an estimate of ``tr A^power``."""
        return self.trace_of(lambda x: x**power)

    def density(self, x: Float[Array, " k"], width: Scalar) -> Float[Array, " k"]:
        """Return the density at x, of integral 1, every node widened to a Gaussian of standard deviation `width`."""
        width = jnp.asarray(width, x.dtype)
        z = (x[:, None] - self.nodes.reshape(1, -1)) / width
        bumps = jnp.exp(-(z**2) / 2) / (width * jnp.sqrt(2 * jnp.pi).astype(x.dtype))
        return matmul(bumps, self.weights.reshape(-1)) / self.nodes.shape[0]  # (2)

    def below(self, x: Float[Array, " k"]) -> Float[Array, " k"]:
        """Return the share of eigenvalues at or below x."""
        inside = self.nodes.reshape(1, -1) <= x[:, None]
        return jnp.sum(jnp.where(inside, self.weights.reshape(1, -1), 0), axis=1) / self.nodes.shape[0]


@jax.custom_jvp
def _quadrature(matrix: Float[Array, "k k"]) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Return eigenvalues and squared first components of eigenvectors of a tridiagonal matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors[0] ** 2  # (1)


@_quadrature.defjvp
def _quadrature_jvp(primals, tangents):
    """Differentiate; blocks behind an early end repeat eigenvalues, but have no weight there to exchange."""
    (matrix,), (change,) = primals, tangents
    values, vectors = jnp.linalg.eigh(matrix)
    rotated = matmul(vectors.T, matmul(change, vectors))
    gaps = values[None, :] - values[:, None]
    close = jnp.abs(gaps) <= 4 * eps(values.dtype) * jnp.max(jnp.abs(values))
    mixing = jnp.where(close, 0, rotated / jnp.where(close, 1, gaps))
    first = vectors[0]
    # (3)
    return (values, first**2), (jnp.diagonal(rotated), 2 * first * matmul(first, mixing))


def spectral_density(operator: Any, key: Array, *, num_steps: int = 32, num_probes: int = 8) -> SpectralDensity:
    """Estimate the distribution of the eigenvalues of a symmetric operator by stochastic Lanczos quadrature.

    Parameters
    ----------
    operator : LinearOperator or Float[Array, "n n"]
        Symmetric; a loss's Hessian, say. What it was made from is differentiable.
    key : PRNG key
        Of the starting vectors, uniform on the sphere.
    num_steps : int
        Lanczos steps k, each a product for all probes at once; static. More than n are n.
    num_probes : int
        Starting vectors; static.

    Returns
    -------
    SpectralDensity
        With `trace_of`, `moment`, `density`, `below`.

    Raises
    ------
    TypeError, ValueError
        For an operator that is not square and real, or counts that are not positive.

    Notes
    -----
    ``num_probes num_steps`` products and as many stored vectors, every one orthogonalised against all before it of its
    probe. Where a Krylov space ends early, what is behind has weight 0. Derivatives pass through all of it: memory in
    reverse mode is that of the stored products.

    References
    ----------
    S. Ubaru, J. Chen, Y. Saad, *Fast estimation of tr(f(A)) via stochastic Lanczos quadrature*, SIAM J. Matrix Anal.
    Appl. 2017.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import spectral_density
    >>> density = spectral_density(jnp.diag(jnp.array([1.0, 1.0, 3.0])), jax.random.key(3))
    >>> print(density.below(jnp.array([0.9, 3.1])).round(3))
    [0. 1.]
    """
    for argument, value in (("num_steps", num_steps), ("num_probes", num_probes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            checks.fail("spectral_density", argument, "a positive integer", value)
    checks.random_key("spectral_density", "key", key)
    return _density(operator, key, num_steps, num_probes)


@eqx.filter_jit  # one program, not a hundred of small ones
def _density(operator: Any, key: Array, num_steps: int, num_probes: int) -> SpectralDensity:
    flat = flattened("spectral_density", operator)
    starts = probes("sphere", key, num_probes, jax.ShapeDtypeStruct((flat.size,), flat.dtype))
    runs = tridiagonals(flat, starts, num_steps)
    nodes, weights = jax.vmap(lambda t: _quadrature(t.matrix()))(runs)
    return SpectralDensity(nodes, weights, flat.size)


def tridiagonals(flat: Flat, starts: Float[Array, "p n"], num_steps: int) -> Tridiagonal:
    """Return Lanczos runs from several vectors, whose products are one vmapped product a step."""
    return jax.vmap(lambda start: lanczos(lambda x: flat.rows(x[None])[0], start, min(num_steps, flat.size)))(starts)


class EigenSolution(Solution):
    """The answer of `extreme_eigenpairs`: `value` holds the eigenvalues, largest first.

    Attributes
    ----------
    vectors : PyTree
        Eigenvectors of norm 1 along a new first axis, as the operator's domain.
    """

    vectors: Any


class _Ritz(NamedTuple):
    """Orthonormal rows and their products (the first `kept` in use), Ritz values, residuals and the next direction."""

    basis: Array
    image: Array
    values: Array
    error: Array
    following: Array


def extreme_eigenpairs(
    operator: Any,
    key: Array,
    count: int = 1,
    *,
    smallest: bool = False,
    num_basis: int | None = None,
    tol: Scalar | None = None,
    max_steps: Scalar = 100,
    history: bool | int = False,
    progress: Progress | None = None,
    unconverged: str = "nan",
) -> EigenSolution:
    """Find the `count` largest (algebraically) eigenvalues of a symmetric operator and their eigenvectors.

    Parameters
    ----------
    operator : LinearOperator or Float[Array, "n n"]
        Symmetric.
    key : PRNG key
        Of the starting vector.
    count : int
        How many pairs; static, at most n.
    smallest : bool
        The smallest instead, smallest first.
    num_basis : int, optional
        Vectors kept at once; static. By default ``max(2 count + 12, 20)``, at most n.
    tol : scalar, optional
        Traced; by default the cube root of the dtype's eps, squared.
    max_steps : int
        Restarts; traced.
    history : bool or int
        Record the errors.
    progress : callable, optional
        Called with step and error.
    unconverged : str
        Derivatives where it did not converge: "nan", or "approximate" ones at the pairs returned.

    Returns
    -------
    EigenSolution
        `error` is ``max_i |A v_i - lambda_i v_i|`` over the largest Ritz value in size, i among those asked for: each
        `value` is within ``error`` times that of an eigenvalue.

    Raises
    ------
    TypeError, ValueError
        For an operator that is not square and real, counts out of range, or an unknown option.

    Notes
    -----
    Lanczos with thick restarts and full orthogonalisation: at every restart half of the basis, the best Ritz vectors,
    is kept with its products, and grown again from the residual of the worst pair asked for. A step costs
    ``num_basis / 2`` products. Where the Krylov space ends, a random vector goes on. A copy of a multiple eigenvalue
    can still be missed: residuals prove eigenvalues, not that none was passed over. Values and vectors are
    differentiable in what the operator was made from, to any order where the eigenvalues are simple: ``dlambda = v^T dA
    v`` takes one product, ``(A - lambda) dv = dlambda v - dA v`` MINRES.

    References
    ----------
    K. Wu, H. Simon, *Thick-restart Lanczos method for large symmetric eigenvalue problems*, SIAM J. Matrix Anal. Appl.
    2000.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import extreme_eigenpairs
    >>> sol = extreme_eigenpairs(jnp.diag(jnp.arange(30.0)), jax.random.key(3), 2)
    >>> print(sol.value.round(3), bool(sol.converged))
    [29. 28.] True
    """
    name = "extreme_eigenpairs"
    checks.random_key(name, "key", key)
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    tol = None if tol is None else checks.number(name, "tol", tol)
    limits = Limits(tol, checks.count(name, "max_steps", max_steps), history, progress)
    return _eigenpairs(operator, key, (count, num_basis), limits, smallest, unconverged)


@eqx.filter_jit  # one program, not a hundred of small ones
def _eigenpairs(operator: Any, key: Array, sizes: Any, limits: Limits, smallest: bool, unconverged: str):
    name, (count, num_basis), tol = "extreme_eigenpairs", sizes, limits.tol
    flat = flattened(name, operator)
    n = flat.size
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= n:
        checks.fail(name, "count", f"an integer from 1 to {n}", count)
    size = min(n, max(2 * count + 12, 20)) if num_basis is None else num_basis
    if isinstance(size, bool) or not isinstance(size, int) or not min(count + 1, n) <= size <= n:
        checks.fail(name, "num_basis", f"an integer from {min(count + 1, n)} to {n}", size)
    tol = eps(flat.dtype) ** (2 / 3) if tol is None else tol
    tol = checks.number(name, "tol", tol, dtype=flat.dtype)
    sign = -1 if smallest else 1
    kept = min(max(count, (count + size) // 2), size)
    frozen = jax.lax.stop_gradient
    spare = probes("sphere", key, size + 1, jax.ShapeDtypeStruct((n,), flat.dtype))
    product = lambda x: frozen(flat.rows(x[None])[0])  # noqa: E731

    def grown(basis, image, following, first):
        def add(i, carry):
            basis, image, v = carry
            basis = basis.at[i].set(v)
            w = product(v)
            return basis, image.at[i].set(w), _direction(w, basis, spare[i])

        return jax.lax.fori_loop(first, size, add, (basis, image, following))

    def ritz(basis, image):
        gram = matmul(basis, image.T)
        values, vectors = jnp.linalg.eigh(sign * (gram + gram.T) / 2)
        values, vectors = values[::-1], vectors[:, ::-1]
        basis, image = matmul(vectors.T, basis), matmul(vectors.T, image)
        residual = image - sign * values[:, None] * basis
        sizes = jnp.sqrt(jnp.sum(residual[:count] ** 2, axis=1))
        largest = jnp.max(jnp.abs(values))
        error = jnp.max(sizes) / jnp.where(largest > 0, largest, 1)
        worst = residual[jnp.argmax(sizes)]
        return _Ritz(basis, image, sign * values, jnp.where(jnp.all(jnp.isfinite(image)), error, jnp.nan), worst)

    def step(s: _Ritz) -> _Ritz:
        rows = jnp.arange(size)[:, None] < kept
        basis, image = jnp.where(rows, s.basis, 0), jnp.where(rows, s.image, 0)
        following = _direction(s.following, basis, spare[kept - 1])
        basis, image, _ = grown(basis, image, following, kept)
        return ritz(basis, image)

    zero = jnp.zeros((size, n), flat.dtype)
    basis, image, _ = grown(zero, zero, _direction(jnp.zeros(n, flat.dtype), zero, spare[size]), 0)
    run = iterate(
        step, ritz(basis, image), Limits(tol, limits.max_steps, limits.history, limits.progress),
        value=lambda s: s.basis[:count], error=lambda s: s.error, stall=20,
    )  # fmt: skip
    values, rows = _differentiable(flat, run.value)
    values = jnp.where(run.status == Status.NONFINITE, jnp.nan, values)
    if unconverged == "nan":
        values, rows = distrust((values, rows), run.status == Status.CONVERGED)
    return EigenSolution(values, run.status, run.num_steps, run.error, tol, run.history, jax.vmap(flat.unravel)(rows))


def _differentiable(flat: Flat, rows: Float[Array, "c n"]) -> tuple[Array, Array]:
    """Return Rayleigh quotients and eigenvectors with the derivatives of simple eigenpairs."""
    rows = jax.lax.stop_gradient(rows)
    product, data = jax.closure_convert(lambda x: flat.rows(x[None])[0], rows[0])
    quotient = lambda v, data: dot(v, product(v, *data)) / dot(v, v)  # noqa: E731
    values = jax.lax.stop_gradient(jax.vmap(lambda v: quotient(v, data))(rows))
    size = jnp.max(jnp.abs(values))
    unit = jnp.where(size > 0, size, 1)

    def residual(pair, data):
        v, value = pair[:-1], pair[-1]
        return jnp.append(product(v, *data) / unit - value * v, (1 - dot(v, v)) / 2)

    def by_minres(matvec, b):
        return minres(matvec, b, tol=4 * eps(b.dtype) * jnp.sqrt(dot(b, b)), max_steps=2 * b.size + 20).x

    def solve(jacobian, b):
        return linear_solve(jacobian, b, by_minres)

    pairs = jnp.concatenate([rows, (values / unit)[:, None]], axis=1)
    rows = jax.vmap(lambda pair: attach(residual, pair, data, solve=solve)[:-1])(pairs)
    return jax.vmap(lambda v: envelope(quotient, v, data))(rows), rows


def _direction(w: Array, basis: Array, spare: Array) -> Array:
    """Return w orthogonalised against the basis and normed; where nothing is left of it, a random vector instead."""
    before = jnp.sqrt(jnp.sum(w**2))
    outside = lambda x: x - matmul(matmul(basis, x), basis)  # noqa: E731
    w = outside(outside(w))
    alive = jnp.sqrt(jnp.sum(w**2)) > 10 * eps(w.dtype) * w.shape[0] ** 0.5 * before
    w = jnp.where(alive, w, outside(outside(spare)))
    size = jnp.sqrt(jnp.sum(w**2))
    return w / jnp.where(size > 0, size, 1)
