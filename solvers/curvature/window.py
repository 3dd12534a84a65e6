"""M-FAC: steps along the inverse empirical Fisher matrix of a sliding window of gradients.

Frantar, Kurtic and Alistarh, M-FAC, NeurIPS 2021, the dynamic algorithm, G the k gradients of the window as rows, the
newest of them ``G^T e``:

(1) ``u = F^-1 g = G^T (damping I + G G^T / k)^-1 e``
(2) ``L L^T = G G^T + k damping I``, slid with the window, hence ``u = k G^T L^-T e / L_mm`` for the last unit vector
(3) ``v <- momentum v + (1 - momentum) u,  theta <- theta - learning_rate v``

It departs from the paper, which divides by the length of the window before that is full, and from its code, which
factorises anew in each step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import solve_triangular

from ..core import checks
from ..core.empirical_fisher import against, combined
from ..core.linalg.sliding import slide
from ..core.loop import when
from ..core.precision import eps
from ..core.typing import Array, Float, Int, Scalar


class MFACState(NamedTuple):
    """Hold the window of `scale_by_mfac`.

    Attributes
    ----------
    grads : PyTree of Float[Array, "num_grads ..."]
        The last gradients, a ring: the newest is in row ``(count - 1) mod num_grads``.
    gram : Float[Array, "num_grads num_grads"]
        Their inner products, the oldest first; rows of zeros come before the first gradient.
    factor : Float[Array, "num_grads num_grads"]
        Lower Cholesky factor of ``gram + shift I``.
    shift : Float[Array, ""]
        Damping times the number of gradients, or the floor that rounding sets.
    count : Int[Array, ""]
        How many were seen.
    """

    grads: Any
    gram: Float[Array, "m m"]
    factor: Float[Array, "m m"]
    shift: Float[Array, ""]
    count: Int[Array, ""]


def scale_by_mfac(num_grads: int = 512, damping: Scalar = 1e-5) -> optax.GradientTransformation:
    """Replace the gradient by ``F^-1 g``, F the damped empirical Fisher matrix of the last ``num_grads`` gradients.

    ``F = damping I + (1/k) sum_i g_i g_i^T`` over the k gradients in the window, the present one among them.

    Parameters
    ----------
    num_grads : int
        Length of the window; static, positive.
    damping : scalar
        Positive; traced.

    Returns
    -------
    optax.GradientTransformation
        Its state is a `MFACState`, whose memory is that of ``num_grads`` copies of the parameters.

    Raises
    ------
    TypeError, ValueError
        When ``num_grads`` is not a positive integer, ``damping`` is a number that is not positive, or there are no
        parameters of a real floating dtype.

    Notes
    -----
    The present gradient is a row of the window, so that ``F^-1 g = G^T (damping I + G G^T / k)^-1 e`` exactly, with no
    division by `damping`, by which the usual form of Woodbury's identity loses digits. A step is one row of the Gram
    matrix and one combination of the window, O(d m), and a slide of its Cholesky factor, O(m^2): dropping the oldest
    gradient is a rank-one *update* of the rest, so nothing cancels, rounding leaves the window
    with its gradient and no refactorisation is needed. The matrix is factored anew, O(m^3), while the window fills and
    when the shift ``k damping`` changes.

    What is lost here grows as ``eps max_i |g_i|^2 / (k damping)`` and only where gradients of the window repeat each
    other; to bound it, ``k damping`` is raised to ``max_i |g_i|^2``, rounded up to a power of two, times the larger of
    ``sqrt(eps)`` and ``4 num_grads eps`` where it is smaller.

    The paper divides by the length of the window from the first step on, here by the number of gradients in it: until
    the window is full the paper's damping counts for more and its steps are longer. The Gram matrix is in float32 at
    least; for gradients whose squared norm overflows it the updates are NaN for as long as they are in the window, and
    ``optax.apply_if_finite`` skips such steps.

    References
    ----------
    E. Frantar, E. Kurtic, D. Alistarh, *M-FAC: Efficient matrix-free approximations of second-order information*,
    NeurIPS 2021, the dynamic algorithm.
    """
    if isinstance(num_grads, bool) or not isinstance(num_grads, int):
        checks.fail("mfac", "num_grads", "an integer", repr(num_grads), TypeError)
    if num_grads < 1:
        checks.fail("mfac", "num_grads", "positive", num_grads)
    checks.number("mfac", "damping", damping, positive=True)

    def init(params):
        leaves = jax.tree.leaves(params)
        if not leaves or not all(jnp.issubdtype(p.dtype, jnp.floating) for p in leaves):
            checks.fail("mfac", "params", "real floating arrays", [str(p.dtype) for p in leaves], TypeError)
        dtype = max([p.dtype for p in leaves] + [jnp.dtype(jnp.float32)], key=lambda d: d.itemsize)
        window = jax.tree.map(lambda p: jnp.zeros((num_grads, *p.shape), p.dtype), params)
        square, one = jnp.zeros((num_grads, num_grads), dtype), jnp.ones((), dtype)
        return MFACState(window, square, jnp.eye(num_grads, dtype=dtype), one, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        dtype = state.gram.dtype
        slot = state.count % num_grads
        window = jax.tree.map(lambda w, g: w.at[slot].set(g.astype(w.dtype)), state.grads, updates)
        wide = jax.tree.map(lambda w: w.astype(dtype), window)
        row = jnp.roll(against(wide, jax.tree.map(lambda w: w[slot], wide)), -(slot + 1))
        gram = jnp.pad(state.gram[1:, 1:], ((0, 1), (0, 1))).at[-1].set(row).at[:, -1].set(row)
        seen = jnp.minimum(state.count + 1, num_grads).astype(dtype)
        shift = _shift(seen * jnp.asarray(damping, dtype), gram)
        slid = slide(state.factor, row.at[-1].add(shift), shift)  # (2)
        anew = (shift != state.shift) | ~jnp.all(jnp.isfinite(slid[-1]))
        factor = when(anew, lambda _: jnp.linalg.cholesky(gram + jnp.diag(jnp.full(num_grads, shift))), slid)
        # (2): (L L^T)^-1 e = L^-T e / L_mm for the last unit vector e
        newest = jax.nn.one_hot(num_grads - 1, num_grads, dtype=dtype) * (seen / factor[-1, -1])
        c = jnp.roll(solve_triangular(factor, newest, lower=True, trans="T"), slot + 1)
        step = jax.tree.map(lambda u, g: u.astype(g.dtype), combined(wide, c), updates)  # (1)
        return step, MFACState(window, gram, factor, shift, jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformation(init, update)


def _shift(wanted: Float[Array, ""], gram: Float[Array, "m m"]) -> Float[Array, ""]:
    """Return `wanted`, raised to what rounding needs; in powers of two, so that it rarely changes. A zero Gram: one."""
    dtype = gram.dtype
    largest = jnp.max(jnp.diagonal(gram))
    floor = max(4 * gram.shape[0] * eps(dtype), eps(dtype) ** 0.5)
    _, exponent = jnp.frexp(largest)
    raised = jnp.maximum(wanted, floor * jnp.ldexp(jnp.ones((), dtype), exponent))
    return jnp.where(largest > 0, raised, jnp.maximum(wanted, 1))


def mfac(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    num_grads: int = 512,
    damping: Scalar = 1e-5,
    momentum: Scalar | None = None,
) -> optax.GradientTransformation:
    """Minimise by natural-gradient steps with the empirical Fisher matrix of the last ``num_grads`` gradients (M-FAC).

    ``u = F^-1 g`` by `scale_by_mfac`, ``v = momentum v + (1 - momentum) u``, ``theta = theta - learning_rate v``. Worth
    its memory, ``num_grads`` copies of the parameters, where the loss is badly scaled and gradients are cheap; else
    ``optax.adam``. Weight decay is chained, as elsewhere in Optax.

    Parameters
    ----------
    learning_rate : scalar or schedule
        Of the last step.
    num_grads : int
        Length of the window; static, positive (``optax.inject_hyperparams`` takes it in ``static_args``).
    damping : scalar
        Positive, in units of squared gradients; traced.
    momentum : scalar or None
        Of the moving average of ``u``; None for none.

    Returns
    -------
    optax.GradientTransformation
        A chain of `scale_by_mfac`, the moving average and the learning rate.

    Raises
    ------
    TypeError, ValueError
        As `scale_by_mfac` does.

    Notes
    -----
    See `scale_by_mfac` for the arithmetic, its cost and where it departs from the paper.

    References
    ----------
    E. Frantar, E. Kurtic, D. Alistarh, *M-FAC: Efficient matrix-free approximations of second-order information*,
    NeurIPS 2021.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from solvers import mfac
    >>> optimiser = mfac(1.0, num_grads=4, damping=0.5)
    >>> params = jnp.zeros(2)
    >>> updates, state = optimiser.update(jnp.array([1.0, 0.5]), optimiser.init(params), params)
    >>> print(optax.apply_updates(params, updates).round(4))
    [-0.5714 -0.2857]
    """
    average = () if momentum is None else (optax.ema(momentum, debias=False),)
    # (3)
    return optax.chain(scale_by_mfac(num_grads, damping), *average, optax.scale_by_learning_rate(learning_rate))
