"""Trace, diagonal and traces of blocks of a symmetric operator from products alone, to a requested standard error."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular

from ..core import checks
from ..core.loop import when
from ..core.precision import dot, eps, matmul
from ..core.probes import probes
from ..core.typing import Array, Float, Scalar
from .estimate import Estimate, Flat, Goal, flattened

METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace")
BATCH = 8


def trace(
    operator: Any,
    key: Array,
    *,
    rtol: Scalar = 1e-2,
    atol: Scalar = 0.0,
    method: str = "xtrace",
    max_products: int = 128,
    rank: int | None = None,
) -> Estimate:
    """Estimate the trace of a symmetric operator, with a standard error, until that is small enough.

    Parameters
    ----------
    operator : LinearOperator or Float[Array, "n n"]
        Symmetric; the Hessian of a loss (`hessian`), say. Its products are differentiable, the stopping is not.
    key : PRNG key
        Of the random vectors.
    rtol, atol : scalar
        Stops when the standard error is at most ``max(atol, rtol |value|)``; traced.
    method : str
        "hutchinson": mean of ``z^T A z``; for flat spectra. "hutch++": the same after a subspace of dimension `rank`
        was taken out exactly. "xtrace": every probe serves the subspace of the others; for decaying spectra, the
        default. "xnystrace": likewise with Nystrom's approximation, at half the products; for positive semidefinite A
        only, NaN for others.
    max_products : int
        At most this many; static. Memory is as many vectors for the last two methods.
    rank : int, optional
        Of "hutch++", a third of `max_products` and at most 32 by default; static.

    Returns
    -------
    Estimate
        `converged` says whether the standard error was reached.

    Raises
    ------
    TypeError, ValueError
        For an operator that is not square and real, or options out of range.

    Notes
    -----
    Probes go in batches of 8 through one vmapped product; the last two methods double their probes and keep what they
    have. Their estimates share probes, and the published standard error, which takes them for independent, is up to
    three times too small on decaying spectra; here it is the jackknife's, which errs on the other side.

    References
    ----------
    R. A. Meyer, C. Musco, C. Musco, D. Woodruff, *Hutch++: optimal stochastic trace estimation*, SOSA 2021.
    E. N. Epperly, J. A. Tropp, R. J. Webber, *XTrace: making the most of every sample in stochastic trace estimation*,
    SIAM J. Matrix Anal. Appl. 2024. E. N. Epperly, J. A. Tropp, *Efficient error and variance estimation for randomized
    matrix computations*, SIAM J. Sci. Comput. 2024, on the jackknife.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import trace
    >>> estimate = trace(jnp.diag(0.5 ** jnp.arange(30.0)), jax.random.key(3), rtol=1e-3)
    >>> print(estimate.value.round(2), bool(estimate.converged))
    2.0 True
    """
    checks.choice("trace", "method", method, METHODS)
    goal = _goal("trace", rtol, atol, max_products)
    flat = flattened("trace", operator)
    if method in ("xtrace", "xnystrace"):
        return _leave_one_out(flat, key, goal, method)
    deflated = 0 if method == "hutchinson" else _rank("trace", rank, goal, flat)
    return _sampled(flat, key, goal, deflated, lambda samples: jnp.sum(samples, axis=-1))


def diagonal(
    operator: Any, key: Array, *, rtol: Scalar = 1e-1, atol: Scalar = 0.0, max_products: int = 128, rank: int = 0
) -> Estimate:
    """Estimate the diagonal of a symmetric operator, ``E z * (A z)``, with a standard error of every entry.

    Parameters
    ----------
    operator : LinearOperator or Float[Array, "n n"]
        Symmetric.
    key : PRNG key
        Of the random vectors.
    rtol, atol : scalar
        Stops when ``|standard_error|_2 <= max(atol, rtol |value|_2)``; traced.
    max_products : int
        At most this many; static.
    rank : int
        Dimension of a subspace taken out exactly at two products each; static.

    Returns
    -------
    Estimate
        `value` and `standard_error` of the operator's structure.

    Raises
    ------
    TypeError, ValueError
        As `trace`.

    References
    ----------
    C. Bekas, E. Kokiopoulou, Y. Saad, *An estimator for the diagonal of a matrix*, Appl. Numer. Math. 2007.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers.curvature import diagonal
    >>> print(diagonal(jnp.diag(jnp.arange(3.0)), jax.random.key(3)).value)
    [0. 1. 2.]
    """
    goal = _goal("diagonal", rtol, atol, max_products)
    flat = flattened("diagonal", operator)
    estimate = _sampled(flat, key, goal, _rank("diagonal", rank, goal, flat), lambda samples: samples, whole=True)
    return _structured(estimate, flat.unravel)


def blockwise_trace(
    operator: Any, key: Array, *, rtol: Scalar = 1e-2, atol: Scalar = 0.0, max_products: int = 128, rank: int = 0
) -> Estimate:
    """Estimate the trace of every leaf's diagonal block of a symmetric operator, all from the same products.

    For sensitivities by layer (`hawq_sensitivity`): one product with the whole Hessian serves all layers.

    Parameters
    ----------
    operator : LinearOperator
        Symmetric, on a pytree.
    key : PRNG key
        Of the random vectors.
    rtol, atol : scalar
        Stops when the standard error of every block is at most ``max(atol, rtol |value|)``; traced.
    max_products : int
        At most this many; static.
    rank : int
        Dimension of a subspace taken out exactly at two products each; static. It pays where few directions hold most
        of the trace, as in trained networks.

    Returns
    -------
    Estimate
        `value` and `standard_error` have a scalar in place of every leaf.

    Raises
    ------
    TypeError, ValueError
        As `trace`.

    References
    ----------
    Z. Dong et al., *HAWQ-V2: Hessian aware trace-weighted quantization of neural networks*, NeurIPS 2020, section 3.1.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import blockwise_trace
    >>> from solvers.curvature import hessian
    >>> point = {"a": jnp.ones(2), "b": jnp.ones(3)}
    >>> curvature = hessian(lambda p: jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 4), point)
    >>> print(blockwise_trace(curvature, jax.random.key(3)).value)
    {'a': Array(4., dtype=...), 'b': Array(36., dtype=...)}
    """
    goal = _goal("blockwise_trace", rtol, atol, max_products)
    flat = flattened("blockwise_trace", operator)
    parts = jax.tree.leaves(flat.unravel(jnp.zeros(flat.size, flat.dtype)))
    tree = jax.tree.structure(flat.unravel(jnp.zeros(flat.size, flat.dtype)))
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + part.size)

    def reduce(samples):
        return jnp.stack([jnp.sum(samples[..., a:b], axis=-1) for a, b in pairwise(ends)], axis=-1)

    estimate = _sampled(flat, key, goal, _rank("blockwise_trace", rank, goal, flat), reduce)
    return _structured(estimate, lambda values: jax.tree.unflatten(tree, list(values)))


def _structured(estimate: Estimate, build: Callable[[Array], Any]) -> Estimate:
    return Estimate(build(estimate.value), build(estimate.standard_error), estimate.num_products, estimate.degrees,
                    estimate.converged)  # fmt: skip


def _goal(name: str, rtol: Any, atol: Any, max_products: Any) -> Goal:
    for argument, value in (("rtol", rtol), ("atol", atol)):
        checks.number(name, argument, value)
    if isinstance(max_products, bool) or not isinstance(max_products, int) or max_products < 2 * BATCH:
        checks.fail(name, "max_products", f"an integer from {2 * BATCH}", max_products)
    return Goal(atol, rtol, max_products)


def _rank(name: str, rank: int | None, goal: Goal, flat: Flat) -> int:
    if rank is None:
        return min(goal.most // 3, 32, flat.size)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0 or 2 * rank + BATCH > goal.most:
        checks.fail(name, "rank", f"an integer from 0 to {(goal.most - BATCH) // 2}", rank)
    return min(rank, flat.size)


class _Moments(NamedTuple):
    """Count, mean and sum of squared deviations of the samples, and the products made."""

    count: Array
    mean: Array
    squares: Array
    products: Array
    reached: Array


def _sampled(flat: Flat, key: Array, goal: Goal, rank: int, reduce: Callable[[Array], Array], *, whole: bool = False):
    """Average ``reduce(z * R z)`` of the operator with a subspace taken out, R, and add what that held exactly.

    With P the projection on the subspace, ``A = P A + (I - P) A P + (I - P) A (I - P)``: the diagonals of the first two
    are known from A on a basis, only that of the third is sampled.
    """
    start, walk = jax.random.split(key)
    like = jax.ShapeDtypeStruct((flat.size,), flat.dtype)
    basis = jnp.zeros((0, flat.size), flat.dtype)
    exact = jnp.zeros(flat.size, flat.dtype)
    if rank:
        sketch = flat.rows(probes("rademacher", start, rank, like))
        basis = jnp.linalg.qr(sketch.T)[0].T
        image = flat.rows(basis)
        exact = jnp.sum(basis * (image + _outside(image, basis)), axis=0)

    def samples(key):
        z = probes("rademacher", key, BATCH, like)
        return reduce(z * _outside(flat.rows(_outside(z, basis)), basis))

    base = reduce(exact)

    def error(m):
        count = m.count.astype(m.squares.dtype)
        return jnp.sqrt(m.squares / jnp.maximum(count - 1, 1) / jnp.maximum(count, 1))

    def body(m):
        new = samples(jax.random.fold_in(walk, m.products))
        count, mean = m.count + BATCH, jnp.mean(new, axis=0)
        step = mean - m.mean
        share = (m.count / count).astype(new.dtype)
        squares = m.squares + jnp.sum((new - mean[None]) ** 2, axis=0) + step**2 * share * BATCH
        after = _Moments(
            count, m.mean + step * (BATCH / count).astype(new.dtype), squares, m.products + BATCH, m.reached
        )
        value, spread = base + after.mean, error(after)
        if whole:
            value, spread = jnp.sqrt(dot(value, value)), jnp.sqrt(dot(spread, spread))
        return after._replace(reached=goal.reached(value, spread))

    zero = jnp.zeros((), jnp.int32)
    begin = _Moments(zero, jnp.zeros_like(base), jnp.zeros_like(base), zero + 2 * rank, jnp.asarray(False))
    end = lax.while_loop(lambda m: ~m.reached & (m.products + BATCH <= goal.most), body, body(begin))
    degrees = (end.count - 1).astype(flat.dtype)
    return Estimate(base + end.mean, error(end), end.products, degrees, end.reached)


def _outside(x: Float[Array, "b n"], basis: Float[Array, "r n"]) -> Float[Array, "b n"]:
    return x - matmul(matmul(x, basis.T), basis) if basis.shape[0] else x


class _Krylov(NamedTuple):
    """Probes, their products and, for XTrace, an orthonormal basis of these with its products; rows are vectors."""

    image: Array
    basis: Array
    basis_image: Array
    value: Array
    error: Array
    count: Array
    products: Array
    reached: Array


def _leave_one_out(flat: Flat, key: Array, goal: Goal, method: str) -> Estimate:
    """Double the number of probes until the estimates with one of them left out agree."""
    per = 2 if method == "xtrace" else 1
    most = min(goal.most // per, flat.size)
    sizes = [min(BATCH, most)]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    omega = probes("sphere", key, most, jax.ShapeDtypeStruct((flat.size,), flat.dtype))
    estimate = _by_xtrace if method == "xtrace" else _by_xnystrace
    # Nystrom's matrix is as ill-conditioned as A is compressible: half of the digits go.
    rounding = 4 * eps(flat.dtype) if method == "xtrace" else 2 * eps(flat.dtype) ** 0.5

    def grown(k, old, new):
        def grow(s: _Krylov) -> _Krylov:
            image = s.image.at[old:new].set(flat.rows(omega[old:new]))
            basis, basis_image = s.basis, s.basis_image
            if method == "xtrace":
                fresh = image[old:new]
                for _ in range(2):
                    fresh = _outside(fresh, basis[:old])
                fresh = jnp.linalg.qr(fresh.T)[0].T
                fresh = jnp.linalg.qr(_outside(fresh, basis[:old]).T)[0].T
                basis, basis_image = basis.at[old:new].set(fresh), basis_image.at[old:new].set(flat.rows(fresh))
            value, spread = estimate(omega[:new], image[:new], basis[:new], basis_image[:new])
            spread = jnp.maximum(spread, rounding * jnp.abs(value))
            count = jnp.asarray(new, jnp.int32)
            return _Krylov(image, basis, basis_image, value, spread, count, count * per, goal.reached(value, spread))

        return grow

    empty, zero = jnp.zeros((most, flat.size), flat.dtype), jnp.zeros((), flat.dtype)
    unused = empty if method == "xtrace" else empty[:0]
    none = jnp.zeros((), jnp.int32)
    state = grown(0, 0, sizes[0])(_Krylov(empty, unused, unused, zero, zero, none, none, jnp.asarray(False)))
    for old, new in pairwise(sizes):
        state = when(~state.reached, grown(0, old, new), state)
    exact = jnp.asarray(most >= flat.size) & (state.count >= flat.size)
    degrees = jnp.maximum(state.count - 1, 1).astype(flat.dtype)
    return Estimate(
        state.value, state.error, state.products, degrees, (state.reached | exact) & jnp.isfinite(state.value)
    )


def _by_xtrace(omega: Array, image: Array, basis: Array, basis_image: Array) -> tuple[Array, Array]:
    r, h, w = matmul(basis, image.T), matmul(basis, basis_image.T), matmul(basis, omega.T)
    small = _Small(matmul(omega, image.T), matmul(omega, omega.T), r, h, w, omega.shape[1])
    return _with_error(_xtrace, small, turned=True)


def _by_xnystrace(omega: Array, image: Array, *_: Array) -> tuple[Array, Array]:
    n = omega.shape[1]
    shift = eps(image.dtype) * jnp.sqrt(jnp.sum(image**2) / n)
    image = image + shift * omega
    gram, none = matmul(omega, image.T), jnp.zeros((0, 0), image.dtype)
    r = jnp.linalg.qr(image.T, mode="r")
    small = _Small((gram + gram.T) / 2, matmul(omega, omega.T), r, none, none, n)
    value, error = _with_error(_xnystrace, small, turned=False)
    return value - shift * n, error


class _Small(NamedTuple):
    """The k x k matrices that the estimates are made of, and the length n of a probe.

    Attributes
    ----------
    test : Float[Array, "k k"]
        ``Omega^T Y`` with ``Y = A Omega``.
    probes : Float[Array, "k k"]
        ``Omega^T Omega``.
    r : Float[Array, "k k"]
        Of ``Y = Q R``.
    h, w : Float[Array, "k k"]
        ``Q^T A Q`` and ``Q^T Omega``, for XTrace.
    size : int
        n.
    """

    test: Array
    probes: Array
    r: Array
    h: Array
    w: Array
    size: int

    def without(self, kept: Array, turned: bool) -> "_Small":
        """Return the matrices of the probes `kept`, with a basis of their range where there is one."""
        pairs = [x[kept][:, kept] for x in (self.test, self.probes)]
        r = self.r[:, kept]
        if not turned:
            return self._replace(test=pairs[0], probes=pairs[1], r=r)
        q, r = jnp.linalg.qr(r)
        return _Small(pairs[0], pairs[1], r, matmul(q.T, matmul(self.h, q)), matmul(q.T, self.w[:, kept]), self.size)


def _with_error(estimates: Callable[[_Small], Array], small: _Small, turned: bool) -> tuple[Array, Array]:
    """Return the mean of the estimates and its jackknife standard error: from the same with one probe fewer.

    The estimates share all probes but one, so their own spread says little of the error of their mean. That of the
    means without one probe bounds it: by Efron and Stein the jackknife's variance is, in expectation, no less than that
    of the mean of k - 1.
    """
    k = small.test.shape[0]
    value = jnp.mean(estimates(small))
    if k == 1:
        return value, jnp.full_like(value, jnp.inf)
    kept = (jnp.arange(k)[:, None] + 1 + jnp.arange(k - 1)[None, :]) % k
    fewer = jax.vmap(lambda rows: jnp.mean(estimates(small.without(rows, turned))))(kept)
    return value, jnp.sqrt((k - 1) / k * jnp.sum((fewer - jnp.mean(fewer)) ** 2))


def _xtrace(small: _Small) -> Array:
    """Return the estimates of which each leaves one probe out of the subspace and tests with it alone.

    With ``Y = Q R`` and s_i the normed columns of ``R^-T``, ``Q (I - s_i s_i^T) Q^T`` projects on the range of Y
    without its i-th column; all estimates then follow from k x k matrices.
    """
    k, n, r, h, w = small.test.shape[0], small.size, jnp.triu(small.r), small.h, small.w
    pivots = jnp.diagonal(r)
    least = eps(r.dtype) * jnp.max(jnp.abs(pivots))
    safe = jnp.where(jnp.abs(pivots) > least, pivots, jnp.where(least > 0, least, 1))
    s = solve_triangular(r + jnp.diag(safe - pivots), jnp.eye(k, dtype=r.dtype), trans="T")
    s = s / jnp.sqrt(jnp.sum(s**2, axis=0, keepdims=True))
    left = jnp.trace(h) - jnp.sum(s * matmul(h, s), axis=0)
    eta = w - s * jnp.sum(s * w, axis=0, keepdims=True)
    rest = jnp.diagonal(small.test) - 2 * jnp.sum(eta * r, axis=0) + jnp.sum(eta * matmul(h, eta), axis=0)
    # On the sphere the part of a probe outside the subspace has a uniform direction: give it its mean length.
    outside = jnp.diagonal(small.probes) - jnp.sum(eta**2, axis=0)
    return left + rest * (n - k + 1) / jnp.maximum(outside, eps(r.dtype) * n)


def _xnystrace(small: _Small) -> Array:
    """Return the estimates with Nystrom's approximation from all probes but one, whose residual is ``1 / H^-1_ii``."""
    k, eye = small.test.shape[0], jnp.eye(small.test.shape[0], dtype=small.test.dtype)
    half = solve_triangular(jnp.linalg.cholesky(small.test), eye, lower=True)
    inverse = jnp.sum(half**2, axis=0)
    whole = jnp.sum(matmul(small.r, half.T) ** 2)
    columns = jnp.sum(matmul(small.r, matmul(half.T, half)) ** 2, axis=0)
    probes_inverse = jnp.diagonal(cho_solve((jnp.linalg.cholesky(small.probes), True), eye))
    return whole - columns / inverse + (small.size - k + 1) * probes_inverse / inverse
