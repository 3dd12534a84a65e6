"""What batches do to curvature and learning rates: outliers of a batch's Hessian, and the linear stability of SGD.

Granziol, Zohren and Roberts, JMLR 2022, with B of N examples in a batch, P parameters and s^2 the variance of an
element:

(1) ``r = s sqrt(P / b),  b = B / (1 - B / N)``
(2) ``lambda + r^2 / lambda`` where ``|lambda| > r``, else ``2 r`` with its sign
(3) ``rate B_new / B_old``, or its root

Wu and Su, ICML 2023, with ``a_i`` the gradients, ``H = (1/n) sum_i a_i a_i^T`` and S the second moment of a
perturbation:

(4) ``S <- (I - eta H) S (I - eta H) + eta^2 c ((1/n) sum_i a_i (a_i^T S a_i) a_i^T - H S H)``
(5) ``c = 1 / B`` with replacement, ``(n - B) / (B (n - 1))`` without
(6) ``1 / critical = lambda_max(L^-1/2 Q L^-1/2)``, ``L S = H S + S H``, ``eta^2 Q S`` what is quadratic in eta above

It departs from the paper in the last, which needs no search over eta.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from ..core import checks
from ..core.krylov.lanczos import extreme_ritz, lanczos
from ..core.precision import eps, matmul
from ..core.typing import Array, Bool, Float, Scalar

RULES = ("linear", "sqrt")


def batch_hessian_outlier(
    eigenvalue: Float[Array, "..."],
    num_params: Scalar,
    variance: Scalar,
    batch_size: Scalar,
    num_data: Scalar | None = None,
) -> Float[Array, "..."]:
    """Return where an eigenvalue of the full Hessian is expected in the Hessian of a batch.

    With ``b = B / (1 - B / N)`` and ``r = s sqrt(P / b)``, half the radius of the noise's semicircle: ``lambda +
    r^2 / lambda`` where ``|lambda| > r``, else the edge of the bulk, ``2 r`` with the eigenvalue's sign. The largest
    stable learning rate of gradient descent on the batch is 2 over the largest of these, which is why it grows with B.

    Parameters
    ----------
    eigenvalue : Float[Array, "..."]
        Of the full Hessian.
    num_params : scalar
        P.
    variance : scalar
        ``s^2``, of an element of one example's Hessian about its mean.
    batch_size, num_data : scalar
        B and N; no N for fresh data in every batch.

    Returns
    -------
    Float[Array, "..."]
        Exact for P to infinity and Gaussian noise.

    References
    ----------
    D. Granziol, S. Zohren, S. Roberts, *Learning rates as a function of batch size: a random matrix theory approach to
    neural network training*, JMLR 2022.

    Examples
    --------
    >>> from solvers import batch_hessian_outlier
    >>> print(batch_hessian_outlier(4.0, num_params=100, variance=0.32, batch_size=32))
    4.25
    """
    name = "batch_hessian_outlier"
    value = checks.float_array(name, "eigenvalue", eigenvalue)
    size, spread, batch = (jnp.asarray(x, value.dtype) for x in (num_params, variance, batch_size))
    share = jnp.zeros((), value.dtype) if num_data is None else batch / jnp.asarray(num_data, value.dtype)
    radius = jnp.broadcast_to(jnp.sqrt(spread) * jnp.sqrt(size * jnp.maximum(1 - share, 0) / batch), value.shape)  # (1)
    outside = jnp.abs(value) > radius
    safe = jnp.where(outside, value, 1)
    return jnp.where(outside, value + radius * (radius / safe), jnp.where(value < 0, -2, 2) * radius)  # (2)


def scale_learning_rate(
    learning_rate: Scalar, batch_old: Scalar, batch_new: Scalar, *, rule: str = "linear"
) -> Float[Array, ""]:
    """Return the learning rate for another batch size: times ``B_new / B_old``, or its root.

    Parameters
    ----------
    learning_rate, batch_old, batch_new : scalar
        The learning rate that works at `batch_old`.
    rule : str
        "linear" for SGD, while noise dominates the batch's curvature; "sqrt" for Adam.

    Returns
    -------
    Float[Array, ""]
        Past the batch at which outliers leave the bulk (`batch_hessian_outlier`) the rule promises too much.

    Raises
    ------
    ValueError
        For an unknown rule.

    References
    ----------
    As `batch_hessian_outlier`.

    Examples
    --------
    >>> from solvers import scale_learning_rate
    >>> print(f"{scale_learning_rate(0.1, 128, 512, rule='sqrt'):.3f}")
    0.200
    """
    checks.choice("scale_learning_rate", "rule", rule, RULES)
    rate = checks.number("scale_learning_rate", "learning_rate", learning_rate)
    ratio = jnp.asarray(batch_new, rate.dtype) / jnp.asarray(batch_old, rate.dtype)
    return rate * (ratio if rule == "linear" else jnp.sqrt(ratio))  # (3)


class SGDStability(eqx.Module):
    """How SGD behaves near a minimum that fits all data; made by `sgd_stability`.

    Attributes
    ----------
    curvatures : Float[Array, "r"]
        Eigenvalues of the Hessian in the data's span, 0 where the span ends.
    rows : Float[Array, "n r"]
        Per-example gradients in the eigenvectors of the Hessian.
    mixing : Float[Array, ""]
        ``1 / B`` with replacement, ``(n - B) / (B (n - 1))`` without.
    critical : Float[Array, ""]
        The learning rate up to which perturbations do not grow in mean square.
    trace_bound, largest_bound : Float[Array, ""]
        ``2 / tr H``, beyond which SGD with B = 1 is unstable, and ``2 / lambda_max``, the limit of gradient descent.
    resolved : Bool[Array, ""]
        Whether the Lanczos run behind `critical` bounds its error by 1e-3 of it.
    """

    curvatures: Float[Array, " r"]
    rows: Float[Array, "n r"]
    mixing: Float[Array, ""]
    critical: Float[Array, ""]
    trace_bound: Float[Array, ""]
    largest_bound: Float[Array, ""]
    resolved: Bool[Array, ""]

    def radius(self, learning_rate: Scalar, *, num_steps: int = 64) -> Float[Array, ""]:
        """Return the growth of the mean squared perturbation a step, in the data's span; stable iff at most 1."""
        unit = jnp.max(jnp.abs(self.rows))
        unit = jnp.where(unit > 0, unit, 1)
        # In units of the gradients, whose fourth powers leave the range.
        rows, h = self.rows / unit, self.curvatures / unit / unit
        rate = jnp.asarray(learning_rate, self.rows.dtype) * unit * unit
        alive = _alive(h)

        def step(s):
            kept = (1 - rate * h)[:, None] * s * (1 - rate * h)[None, :]
            # (4)
            return alive * (kept + rate**2 * self.mixing * (_fourth(rows, s) - h[:, None] * s * h[None, :]))

        return _largest(step, alive * jnp.eye(h.shape[0], dtype=h.dtype), num_steps)[0]


def sgd_stability(
    gradients: Float[Array, "n d"], batch_size: int = 1, *, replacement: bool = True, num_steps: int = 64
) -> SGDStability:
    """Say for which learning rates SGD stays at a minimum that fits all data, in mean square.

    For squared loss ``sum_i (f_i - y_i)^2 / (2 n)`` at ``f = y``, with ``a_i = grad f_i`` and ``H = (1/n) sum_i a_i
    a_i^T``, the second moment S of a perturbation follows ``S+ = (I - eta H) S (I - eta H) + eta^2 c [(1/n) sum_i a_i
    (a_i^T S a_i) a_i^T - H S H]`` with ``c = 1/B``, or ``(n - B) / (B (n - 1))`` without replacement.

    Parameters
    ----------
    gradients : Float[Array, "n d"]
        ``a_i``, the gradients of the model's outputs (not of the loss) at the minimum.
    batch_size : int
        B; a Python number or traced.
    replacement : bool
        Whether batches are drawn with replacement; static.
    num_steps : int
        Of Lanczos; static.

    Returns
    -------
    SGDStability
        With `critical`, the closed bounds, and `radius` of any learning rate.

    Raises
    ------
    TypeError, ValueError
        For arrays that are not (n, d), or a batch size out of range.

    Notes
    -----
    Directions without data stay as they are and are left out: all runs in the span, of dimension r at most min(n, d),
    at O(n r^2) a product. The map is positive and symmetric, so its spectral radius is its largest eigenvalue, and
    stability ends where ``eta Q(S) = L(S)`` with ``L(S) = H S + S H`` and Q the quadratic part: ``1 / critical`` is the
    largest eigenvalue of ``L^-1/2 Q L^-1/2``, one Lanczos run with no search over learning rates. A perturbation that
    is large, or a minimum that does not fit all data, is another matter.

    References
    ----------
    L. Wu, W. J. Su, *The implicit regularization of dynamical stability in stochastic gradient descent*, ICML 2023.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import sgd_stability
    >>> stability = sgd_stability(jnp.array([[2.0], [0.0]]))
    >>> print(stability.critical.round(4), stability.largest_bound)
    0.5 1.0
    """
    name = "sgd_stability"
    a = checks.float_array(name, "gradients", gradients, ndim=2)
    n, d = a.shape
    if n == 0 or d == 0:
        checks.fail(name, "gradients", "(n, d) with n, d >= 1", a.shape)
    if isinstance(batch_size, int) and not 1 <= batch_size <= (n if not replacement else batch_size):
        checks.fail(name, "batch_size", "from 1 to n (n without replacement)", batch_size)
    batch = jnp.asarray(batch_size, a.dtype)
    mixing = 1 / batch if replacement else (n - batch) / (batch * max(n - 1, 1))  # (5)
    unit = jnp.max(jnp.abs(a))
    unit = jnp.where(unit > 0, unit, 1)
    left, sizes, _ = jnp.linalg.svd(a / unit, full_matrices=False)
    h = sizes**2 / n
    alive = _alive(h)
    rows, h = left * sizes[None, :] * jnp.diagonal(alive)[None, :], h * jnp.diagonal(alive)
    pairs = h[:, None] + h[None, :]
    root = jnp.where(alive > 0, 1 / jnp.sqrt(jnp.where(alive > 0, pairs, 1)), 0)

    def product(s):
        s = root * s
        return root * (h[:, None] * s * h[None, :] * (1 - mixing) + mixing * _fourth(rows, s))  # (6)

    start = alive * jnp.sqrt(pairs) * jnp.eye(h.shape[0], dtype=h.dtype)
    top, bound = _largest(product, start, num_steps)
    trace, largest = jnp.sum(h), jnp.max(h)
    limit = lambda x, over: jnp.where(x > 0, over / jnp.where(x > 0, x, 1), jnp.where(x == 0, jnp.inf, jnp.nan))  # noqa: E731
    squared = unit**2
    return SGDStability(
        h * squared, rows * unit, mixing, limit(top, 1) / squared, limit(trace, 2) / squared,
        limit(largest, 2) / squared, bound <= 1e-3 * jnp.abs(top),
    )  # fmt: skip


def _alive(h: Float[Array, " r"]) -> Float[Array, "r r"]:
    """Return 1 where both directions have curvature above rounding."""
    kept = (h > 10 * eps(h.dtype) * h.shape[0] * jnp.max(h)).astype(h.dtype)
    return kept[:, None] * kept[None, :]


def _fourth(rows: Float[Array, "n r"], s: Float[Array, "r r"]) -> Float[Array, "r r"]:
    """Return ``(1/n) sum_i a_i (a_i^T S a_i) a_i^T``."""
    weights = jnp.sum(matmul(rows, s) * rows, axis=1)
    return matmul(rows.T, weights[:, None] * rows) / rows.shape[0]


def _largest(product, start: Float[Array, "r r"], num_steps: int) -> tuple[Array, Array]:
    """Return the largest eigenvalue of a symmetric map of matrices and a bound of its error; 0 from a zero start."""
    shape = start.shape
    none = jnp.sum(start**2) == 0
    flat = jnp.where(none, 1, start).reshape(-1)
    run = lanczos(lambda x: product(x.reshape(shape)).reshape(-1), flat, min(num_steps, flat.size))
    _, top, bounds = extreme_ritz(run)
    return jnp.where(none, 0, top), bounds[1]
