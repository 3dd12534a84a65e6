"""Matrix completion from some entries, by alternating least squares or scaled descent.

Gu, Song, Yin and Zhang, ICLR 2024; Jain, Netrapalli and Sanghavi, STOC 2013; the sweeps are in `half_steps`:

(1) ``min sum ((F G')[rows, cols] - values)^2 / 2 + ridge (|F|^2 + |G|^2) / 2``
(2) ``F = U sqrt(S),  G = V sqrt(S)`` of the leading part of the entries over their share, the start
(3) ``|R|_2 > ridge``, R the residuals as a sparse matrix: one more direction would lower the objective

It departs from the paper, which splits the entries over the sweeps and clips large rows at the start.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from ..core import checks
from ..core.implicit import UNCONVERGED
from ..core.loop import iterate
from ..core.precision import eps, matmul, tiny
from ..core.solution import Status
from ..core.typing import Array, Float, Int, Progress, Scalar
from ..core.vectors import inner, norm
from .half_steps import KINDS, Setting, alternate, descend, design, measured
from .sensing import limits_of
from .sides import Side, chunk_length
from .solution import Factors, LowRankSolution, LowRankStatus, balanced, differentiable, exponent_of
from .start import EXTRA

CALL = "complete"
START, LOOKS = 3, 20


class CompletionSolution(LowRankSolution):
    """What `complete` returns: ``X = left right' + row_bias + col_bias + mean``.

    Attributes
    ----------
    residual : Float[Array, ""]
        ``|A(X) - values| / |values|``: how well the entries that were given are met.
    mean : Float[Array, ""]
        Of the given values, with biases; else zero.
    row_bias, col_bias : Float[Array, "n"], Float[Array, "p"]
        Zero without biases.
    """

    residual: Float[Array, "..."]
    mean: Float[Array, "..."]
    row_bias: Float[Array, "... n"]
    col_bias: Float[Array, "... p"]

    @property
    def matrix(self) -> Array:
        """The matrix itself, biases included."""
        product = matmul(self.left, jnp.swapaxes(self.right, -1, -2))
        return product + (self.row_bias[..., :, None] + self.col_bias[..., None, :] + self.mean[..., None, None])

    def predict(self, rows: Int[Array, " q"], cols: Int[Array, " q"]) -> Float[Array, " q"]:
        """Return single entries, without forming the matrix."""
        product = jnp.sum(self.left[rows] * self.right[cols], axis=-1)
        return product + self.row_bias[rows] + self.col_bias[cols] + self.mean


def complete(
    rows: Int[Array, " m"],
    cols: Int[Array, " m"],
    values: Float[Array, " m"],
    shape: tuple[int, int],
    rank: int,
    *,
    method: str = "als_cg",
    ridge: Scalar | None = None,
    ridge_by_count: bool = False,
    biases: bool = False,
    inner_steps: int = 2,
    x0: tuple[Float[Array, "n k"], Float[Array, "p k"]] | None = None,
    axis: str | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 500,
    history: bool | int = False,
    progress: Progress | None = None,
) -> CompletionSolution:
    """Fit a matrix of rank k to some of its entries, by alternating least squares or scaled descent.

    ``min sum ((F G')[rows, cols] - values)^2 / 2 + ridge (|F|^2 + |G|^2) / 2`` over F (n, k) and G (p, k). Use it for
    ratings, images with holes, tables with gaps, noisy or not: of a table with NaN ``rows, cols = jnp.nonzero(~jnp
    .isnan(table))`` are the places, ``table[rows, cols]`` the values. Nothing of size n x p is formed. For other linear
    measurements take `matrix_sensing`, for gross errors among the entries `robust_recovery`.

    Parameters
    ----------
    rows, cols : Int[Array, "m"]
        Where the entries are, in any order; one given twice counts twice. Negative ones are no entries, so that
        problems of different sizes can be padded and batched. Traced.
    values : Float[Array, "m"]
        The entries. Traced, differentiable.
    shape : tuple of int
        (n, p), static.
    rank : int
        k, static, at most min(n, p).
    method : str
        ``"als_cg"``: each half step is `inner_steps` conjugate-gradient steps on all rows at once, O(m k).
        ``"als_exact"``: each half step solves its normal equations, O(m k^2 + n k^3) and n k^2 numbers.
        ``"sketched"``: conjugate gradients preconditioned by the normal equations of a CountSketch of each row's
        entries, O(m k) and O(n k^3) for the factors: where few rows hold most of the entries.
        ``"scaled_gd"``: both factors at once along gradients scaled by the other's Gram matrix, at the exact length.
        Static.
    ridge : scalar, optional
        Penalty, in units of a singular value; at a minimum the singular values of X are about those of the data less
        `ridge`. Traced, differentiable. Without one (None) factors are orthogonalised between the halves.
    ridge_by_count : bool
        Multiply each row's and column's penalty by its number of entries, as in ALS-WR; not for "scaled_gd". Static.
    biases : bool
        Add the mean of the values, and an unknown for each row and column that `ridge` holds too. Needs `ridge`; not
        for "scaled_gd". Static.
    inner_steps : int
        Of "als_cg" and "sketched"; static.
    x0 : pair of arrays, optional
        Factors to start from, of full rank; by default the leading part of the given entries. Its derivative is zero.
    axis : str, optional
        Name of a mapped axis (of ``jax.shard_map``) over which the entries are split: each device gives its own share
        and all return the same. Not differentiable then. Static.
    unconverged : str
        Derivatives of a solve that did not converge: ``"nan"``, or ``"approximate"``, those of the equations at the
        point returned. Static.
    tol : scalar, optional
        Traced; 1e-9 in float64, 1e-5 in float32.
    max_steps : int
        Sweeps, of two half steps each; traced.
    history : bool or int
        Record the error after each step (the first 256, or as many as given). Static.
    progress : callable, optional
        ``progress(step, error)`` on the host.

    Returns
    -------
    CompletionSolution
        ``value = (left, right)``, balanced unless `ridge_by_count`; ``matrix``, ``predict(rows, cols)``; ``residual``
        of the given entries. ``error``: with R the residual as a sparse matrix and V the values, the gradient
        ``sqrt(|R Q_G|^2 + |R' Q_F|^2) / |V|`` for orthonormal bases Q of the factors' columns; with a ridge
        ``sqrt((|dF| / g)^2 + (|dG| / f)^2) / |V|``, dF and dG the gradients, ``g = |G| / sqrt(k) + sqrt(|V|) / 1000``,
        and f alike. `LowRankStatus.STATIONARY` where the gradient vanishes at a matrix of lower rank that another
        direction would improve: a saddle.

    Raises
    ------
    ValueError, TypeError
        Shapes, indices too large (where they are known while tracing), a rank below 1 or above min(n, p), options that
        do not go together.

    Notes
    -----
    Convergence is a claim about the gradient; an `x0` at a saddle of full rank stays there. Whether the entries that
    were not given are right depends on how many were, and where; a row without any is returned as zeros.

    The entries are sorted once, from either side, into chunks of equal length, so that a sweep gathers and multiplies
    and hardly scatters. A sweep of "als_cg" reads them ``2 (inner_steps + 1)`` times, "als_exact" six times; the
    stopping test is a part of that; with a ridge one more. Half steps are over-relaxed by Young's best omega for the
    rate seen; with a ridge the factors are balanced after each sweep, and what the factors explain of the biases is
    moved into them: alternation alone is slow along changes that leave the matrix as it is.

    Memory: about 20 m bytes in float32 and a few times (n + p) k numbers. Derivatives: of ``matrix`` and functions of
    it, in `values` and `ridge`, implicit, forward and reverse, to second order; NaN at a matrix of rank below k, where
    there are none. Values are scaled by a power of four, so their size does not matter.

    Departures from the paper: it splits the entries over the sweeps, and clips large rows at the start, for its proof;
    all entries are used in every sweep here.

    References
    ----------
    Gu, Song, Yin, Zhang, "Low rank matrix completion via robust alternating minimization in nearly linear time", ICLR
    2024. Jain, Netrapalli, Sanghavi, "Low-rank matrix completion using alternating minimization", STOC 2013. Zhou,
    Wilkinson, Schreiber, Pan, "Large-scale parallel collaborative filtering for the Netflix prize", AAIM 2008.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import complete
    >>> X = jnp.outer(jnp.arange(1.0, 5.0), jnp.arange(2.0, 6.0))
    >>> rows, cols = jnp.nonzero(jnp.abs(jnp.arange(4)[:, None] - jnp.arange(4)) < 2)
    >>> sol = complete(rows, cols, X[rows, cols], (4, 4), 1)
    >>> bool(sol.converged), bool(jnp.allclose(sol.matrix, X, rtol=1e-2))
    (True, True)
    """
    checks.choice(CALL, "method", method, KINDS)
    checks.choice(CALL, "unconverged", unconverged, UNCONVERGED)
    values = checks.float_array(CALL, "values", values, ndim=1)
    shape = (int(shape[0]), int(shape[1]))
    rows, cols = (
        _index(name, x, size, values) for name, x, size in (("rows", rows, shape[0]), ("cols", cols, shape[1]))
    )
    for name, x, most in (("rank", rank, min(shape)), ("inner_steps", inner_steps, None)):
        if isinstance(x, bool) or not isinstance(x, int) or x < 1 or (most is not None and x > most):
            limit = "" if most is None else f", at most min(shape) = {most}"
            checks.fail(CALL, name, f"a positive Python integer{limit}", x)
    if (biases or ridge_by_count) and (ridge is None or method == "scaled_gd"):
        checks.fail(
            CALL, "ridge", "given with `biases` and `ridge_by_count`, and another `method` than 'scaled_gd'", ridge
        )
    dtype = values.dtype
    if ridge is not None:
        ridge = checks.number(CALL, "ridge", ridge, dtype=dtype)
    if x0 is not None:
        x0 = Factors(*(checks.float_array(CALL, "x0", x, ndim=2).astype(dtype) for x in x0))
        if (x0.left.shape, x0.right.shape) != ((shape[0], rank), (shape[1], rank)):
            checks.fail(CALL, "x0", f"of {rank} columns and {shape} rows", (x0.left.shape, x0.right.shape))
    limits = limits_of(CALL, dtype, tol, max_steps, history, progress)
    how = (method, inner_steps, biases, ridge_by_count, axis)
    return _solve((rows, cols, values), (shape, rank), ridge, x0, how, limits, unconverged)


def _index(name: str, x, size: int, values) -> Array:
    """Return checked indices."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer) or x.shape != values.shape or not values.size:
        checks.fail(CALL, name, f"integers of shape {values.shape}, like `values`, not empty", f"{x.dtype}{x.shape}")
    if not isinstance(x, Tracer) and np.max(np.asarray(x)) >= size:  # not traced, under `jax.jit` either
        checks.fail(CALL, name, f"below {size}", np.max(np.asarray(x)))
    return x


@eqx.filter_jit
def _solve(entries, sizes, ridge, x0, how, limits, unconverged) -> CompletionSolution:
    (rows, cols, values), (shape, rank) = entries, sizes
    method, inner_steps, biases, by_count, axis = how
    values = jnp.where((rows >= 0) & (cols >= 0) & (rows < shape[0]) & (cols < shape[1]), values, 0)
    largest = lax.stop_gradient(values)
    if axis is not None:
        largest = lax.pmax(jnp.max(jnp.abs(largest)), axis).reshape(1)
    down, up = exponent_of(largest)
    values = values * down * down
    penalty = jnp.zeros((), values.dtype) if ridge is None else ridge * down * down
    mean = _mean(rows, cols, values, axis) if biases else jnp.zeros((), values.dtype)

    v, fixed = lax.stop_gradient((values - mean, penalty))
    least = [chunk_length(v.size, n) for n in shape]
    if method == "sketched":  # a chunk is as long as the sketch: the least power of two above twice the unknowns
        least = [max(length, 1 << (2 * rank + 2 * biases).bit_length()) for length in least]
    one = Side.of(rows, cols, v, shape, length=least[0], axis=axis)
    two = Side.of(cols, rows, v, shape[::-1], length=least[1], axis=axis)
    total = jnp.sqrt(one.total(inner(one.values, one.values)))
    heights = (one.degree, two.degree) if by_count else (jnp.ones_like(one.degree), jnp.ones_like(two.degree))
    key = jax.random.key(37)
    key = key if axis is None else jax.random.fold_in(key, lax.axis_index(axis))
    unit = down if biases else None
    weights = Factors(*(fixed * x[:, None] for x in heights))
    setting = Setting(method, inner_steps, ridge is None, unit, weights, total, key)
    start = spectral(one, two, rank) if x0 is None else Factors(*(x * down for x in lax.stop_gradient(x0)))
    if biases:
        start = Factors(*(jnp.pad(x, ((0, 0), (0, 1))) for x in start))
    sides = (one, two)
    advance = descend if method == "scaled_gd" else alternate
    run = iterate(
        lambda s: advance(sides, setting, s),
        measured(sides, setting, start),
        limits,
        value=lambda s: s.factors,
        error=lambda s: s.error,
        stall=100,
    )

    whole, k = run.value, rank
    flat, singular = balanced(Factors(*(x[:, :k] for x in whole)))
    point = (
        whole if by_count else Factors(*(jnp.concatenate([x, y[:, k:]], 1) for x, y in zip(flat, whole, strict=True)))
    )
    regular = singular[-1] > eps(v.dtype) ** 0.5 * singular[0]
    left = jnp.sqrt(one.square(point.left, design(point.right, unit)))
    saddle = ~regular & improvable(sides, point, setting, fixed, limits.tol)
    status = jnp.where((run.status == Status.CONVERGED) & saddle, LowRankStatus.STATIONARY, run.status)
    trusted = ((status == Status.CONVERGED) | (unconverged == "approximate")) & regular & (axis is None)

    def objective(point, data):
        values, mean, penalty = data
        x, y = point.left[:, :k], point.right[:, :k]
        r = jnp.sum(x[rows] * y[cols], axis=1) + mean - values
        if unit is not None:
            r = r + unit * (point.left[rows, k] + point.right[cols, k])
        r = jnp.where((rows >= 0) & (cols >= 0) & (rows < shape[0]) & (cols < shape[1]), r, 0)
        sizes = [jnp.sum(h[:, None] * x * x) for h, x in zip(heights, point, strict=True)]
        return (inner(r, r) + penalty * (sizes[0] + sizes[1])) / 2  # (1)

    # With a ridge the objective keeps only the rotations, and balanced factors are its minimiser.
    weight = jnp.mean(one.degree) / shape[1]
    data = (values, mean, penalty)
    point = differentiable(objective, point, data, trusted, weight, rigid=ridge is not None, columns=k)
    root, square = lax.stop_gradient((up, up * up))
    shifts = [x[:, k] * root if biases else jnp.zeros(x.shape[0], x.dtype) for x in point]
    return CompletionSolution(
        (point.left[:, :k] * root, point.right[:, :k] * root), status.astype(jnp.int32),
        run.num_steps, run.error, limits.tol, run.history, singular * square,
        left / jnp.where(total > 0, total, 1), mean * square, *shifts,
    )  # fmt: skip


def _mean(rows, cols, values, axis) -> Array:
    """Return the mean of the real entries."""
    count = jnp.sum(((rows >= 0) & (cols >= 0)).astype(values.dtype))
    total = jnp.sum(values)
    if axis is not None:
        total, count = lax.psum((total, count), axis)
    return total / jnp.maximum(count, 1)


def spectral(rows: Side, cols: Side, rank: int) -> Factors:
    """Return the leading part of the entries, zero elsewhere, over their share, by subspace iteration; balanced."""
    n, p = rows.size, cols.size
    width = min(n, p, rank + EXTRA)
    y = jax.random.normal(jax.random.key(29), (p, width), rows.values.dtype)

    def power(y, _):
        return jnp.linalg.qr(cols.values_times(jnp.linalg.qr(rows.values_times(y))[0]))[0], None

    y = lax.scan(power, y, None, length=START)[0]
    u, values, vt = jnp.linalg.svd(rows.values_times(y), full_matrices=False)
    # Directions beyond the rank of the data get a thousandth of the largest value, so that none is dead.
    values = jnp.maximum(values, 1e-3 * values[0])[:rank] * (n * p / jnp.maximum(jnp.sum(rows.degree), 1))
    root = jnp.sqrt(values)[None, :]
    return Factors(u[:, :rank] * root, matmul(y, vt.T)[:, :rank] * root)  # (2)


def improvable(sides: tuple[Side, Side], point: Factors, setting: Setting, ridge: Array, tol: Array) -> Array:
    """Whether one more direction would lower the objective: ``|R|_2 > ridge``, by power iteration from below."""
    (rows, cols), (left, right) = sides, point
    near, far = design(right, setting.unit), design(left, setting.unit)

    def power(v, _):
        u = rows.residual_times(left, near, v)
        v = cols.residual_times(right, far, u / jnp.maximum(norm(u), tiny(u.dtype)))
        return v / jnp.maximum(norm(v), tiny(v.dtype)), None

    start = jax.random.normal(jax.random.key(31), (cols.size, 1), left.dtype)
    largest = norm(rows.residual_times(left, near, lax.scan(power, start, None, length=LOOKS)[0]))
    return largest > ridge + 10 * tol * setting.size  # (3)
