"""Trace, diagonal and traces of blocks of a symmetric operator from products alone, to a requested standard error.

With R the operator A without a subspace, ``R = (I - P) A (I - P)``, P the projection on that, and z random signs:

(1) ``tr R ~ mean z^T R z``, Hutchinson's estimate where P is zero
(2) ``A = P A + (I - P) A P + R``, of which the first two are known from A on a basis: Hutch++, Meyer et al. 2021
(3) ``tr A_ll ~ mean sum_(k in l) z_k (A z)_k`` for each block l: HAWQ-V2, Dong et al. 2020, section 3.1

It departs from Hutch++ in sampling until the error is small enough, with a subspace of fixed size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.probes import probes
from ...core.typing import Array, Scalar
from .interval import Estimate, Flat, Goal, flattened, shape_of_mean
from .leave_one_out import leave_one_out, outside

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
    have. Their estimates share probes: the published standard error takes them for independent and is up to 1.8 times
    too small, the jackknife's up to five times too large. Here the covariance of two estimates, which is the mean
    product of what each gains by the other's probe, is estimated without bias and counted (`leave_one_out`).

    References
    ----------
    R. A. Meyer, C. Musco, C. Musco, D. Woodruff, *Hutch++: optimal stochastic trace estimation*, SOSA 2021.
    E. N. Epperly, J. A. Tropp, R. J. Webber, *XTrace: making the most of every sample in stochastic trace estimation*,
    SIAM J. Matrix Anal. Appl. 2024. E. N. Epperly, J. A. Tropp, *Efficient error and variance estimation for randomized
    matrix computations*, SIAM J. Sci. Comput. 2024, on the jackknife. The covariance is ours.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import trace
    >>> estimate = trace(jnp.diag(0.5 ** jnp.arange(30.0)), jax.random.key(3), rtol=1e-3)
    >>> print(estimate.value.round(2), bool(estimate.converged))
    2.0 True
    """
    checks.choice("trace", "method", method, METHODS)
    checks.random_key("trace", "key", key)
    return _trace(operator, key, _goal("trace", rtol, atol, max_products), method, rank)


@eqx.filter_jit  # one program, not hundreds of small ones
def _trace(operator: Any, key: Array, goal: Goal, method: str, rank: int | None) -> Estimate:
    flat = flattened("trace", operator)
    if method in ("xtrace", "xnystrace"):
        return leave_one_out(flat, key, goal, method)
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
    checks.random_key("diagonal", "key", key)
    return _diagonal(operator, key, _goal("diagonal", rtol, atol, max_products), rank)


@eqx.filter_jit
def _diagonal(operator: Any, key: Array, goal: Goal, rank: int | None) -> Estimate:
    flat = flattened("diagonal", operator)
    estimate = _sampled(flat, key, goal, _rank("diagonal", rank, goal, flat), lambda samples: samples, whole=True)
    value, error = flat.unravel(estimate.value), flat.unravel(estimate.standard_error)
    skewness, degrees = (jax.tree.map(lambda _, s=s: s, value) for s in (estimate.skewness, estimate.degrees))
    return Estimate(value, error, skewness, degrees, estimate.num_products, estimate.converged)


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
    checks.random_key("blockwise_trace", "key", key)
    return _blockwise_trace(operator, key, _goal("blockwise_trace", rtol, atol, max_products), rank)


@eqx.filter_jit
def _blockwise_trace(operator: Any, key: Array, goal: Goal, rank: int | None) -> Estimate:
    flat = flattened("blockwise_trace", operator)
    parts = jax.tree.leaves(flat.unravel(jnp.zeros(flat.size, flat.dtype)))
    tree = jax.tree.structure(flat.unravel(jnp.zeros(flat.size, flat.dtype)))
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + part.size)

    def reduce(samples):
        # (3)
        return jnp.stack([jnp.sum(samples[..., a:b], axis=-1) for a, b in pairwise(ends)], axis=-1)

    estimate = _sampled(flat, key, goal, _rank("blockwise_trace", rank, goal, flat), reduce)
    fields = (estimate.value, estimate.standard_error, estimate.skewness, estimate.degrees)
    value, error, skewness, degrees = (jax.tree.unflatten(tree, list(values)) for values in fields)
    return Estimate(value, error, skewness, degrees, estimate.num_products, estimate.converged)


def _goal(name: str, rtol: Any, atol: Any, max_products: Any) -> Goal:
    atol, rtol = checks.number(name, "atol", atol), checks.number(name, "rtol", rtol)
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
    """Count, mean and sum of squared deviations of the samples, the products made, and the samples where few."""

    count: Array
    mean: Array
    squares: Array
    products: Array
    reached: Array
    kept: Array


def _sampled(flat: Flat, key: Array, goal: Goal, rank: int, reduce: Callable[[Array], Array], *, whole: bool = False):
    """Average ``reduce(z * R z)`` of the operator with a subspace taken out, R, and add what that held exactly.

    With P the projection on the subspace, ``A = P A + (I - P) A P + (I - P) A (I - P)``: the diagonals of the first two
    are known from A on a basis, only that of the third is sampled. `whole`: one goal for all entries, of which the
    samples are not kept.
    """
    start, walk = jax.random.split(key)
    like = jax.ShapeDtypeStruct((flat.size,), flat.dtype)
    basis = jnp.zeros((0, flat.size), flat.dtype)
    exact = jnp.zeros(flat.size, flat.dtype)
    if rank:
        sketch = flat.rows(probes("rademacher", start, rank, like))
        basis = jnp.linalg.qr(sketch.T)[0].T
        image = flat.rows(basis)
        exact = jnp.sum(basis * (image + outside(image, basis)), axis=0)  # (2)

    def samples(key, size):
        z = probes("rademacher", key, size, like)
        return reduce(z * outside(flat.rows(outside(z, basis)), basis))  # (1)

    base = reduce(exact)

    def error(m):
        count = m.count.astype(m.squares.dtype)
        return unit * jnp.sqrt(m.squares / jnp.maximum(count - 1, 1) / jnp.maximum(count, 1))

    def absorbed(m, new):
        size = new.shape[0]
        count, mean = m.count + size, jnp.mean(new, axis=0)
        step = mean - m.mean
        share = (m.count / count).astype(new.dtype)
        squares = m.squares + jnp.sum(((new - mean[None]) / unit) ** 2, axis=0) + (step / unit) ** 2 * share * size
        kept = m.kept if whole else jax.lax.dynamic_update_slice_in_dim(m.kept, new, m.count, 0)
        after = _Moments(
            count, m.mean + step * (size / count).astype(new.dtype), squares, m.products + size, m.reached, kept
        )
        value, spread = base + after.mean, error(after)
        if whole:
            value, spread = (unit * jnp.sqrt(jnp.sum((x / unit) ** 2)) for x in (value, spread))
        return after._replace(reached=goal.reached(value, spread))

    def body(m):
        return absorbed(m, samples(jax.random.fold_in(walk, m.products), BATCH))

    zero, nothing, left = jnp.zeros((), jnp.int32), jnp.zeros_like(base), goal.most - 2 * rank
    kept = jnp.zeros((0 if whole else max(left, BATCH), *base.shape), base.dtype)
    begin = _Moments(zero, nothing, nothing, zero + 2 * rank, jnp.asarray(False), kept)
    first = samples(jax.random.fold_in(walk, 2 * rank), min(left, BATCH + left % BATCH))
    # Squares are of the size of the samples: those of a very small or large operator would leave the range.
    size = jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(first)), jnp.max(jnp.abs(base))))
    unit = jnp.where(size > 0, size, 1)
    end = lax.while_loop(lambda m: ~m.reached & (m.products + BATCH <= goal.most), body, absorbed(begin, first))
    skewness, degrees = jnp.zeros((), flat.dtype), (end.count - 1).astype(flat.dtype)
    if not whole:
        skewness, degrees = shape_of_mean(end.kept, end.count)
    return Estimate(base + end.mean, error(end), skewness, degrees, end.products, end.reached)
