"""Value functions that are linear in their coefficients, by one linear solve: least-squares temporal differences."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core import checks
from ..core.precision import eps, matmul
from ..core.typing import Array, Float, Scalar
from .paths import Paths, over_paths


class LinearValue(eqx.Module):
    """What `lstd` returns; call it with (t, x) for the value there.

    Attributes
    ----------
    coefficients : Float[Array, "p"]
        NaN where the features cannot be told apart.
    covariance : Float[Array, "p p"]
        Of the coefficients over draws of the paths; the root of its diagonal is the standard error.
    condition : Float[Array, ""]
        Of the equations, features scaled to equal size.
    features, base : callable
        Those that `lstd` was given. Static.
    """

    coefficients: Float[Array, " p"]
    covariance: Float[Array, "p p"]
    condition: Float[Array, ""]
    features: Callable = eqx.field(static=True)
    base: Callable | None = eqx.field(static=True)

    @property
    def standard_error(self) -> Float[Array, " p"]:
        """Of each coefficient."""
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))

    def __call__(self, t, x):
        """Return ``base(t, x) + coefficients . features(t, x)``."""
        offset = 0 if self.base is None else self.base(t, x)
        return offset + jnp.sum(self.coefficients * self.features(t, x))


def lstd(
    features: Callable[[Array, Array], Array],
    paths: Paths,
    *,
    base: Callable[[Array, Array], Array] | None = None,
    lam: Scalar = 0.0,
) -> LinearValue:
    """Fit ``J(t, x) = base(t, x) + c . features(t, x)`` by martingale orthogonality, in one linear solve (CTLSTD).

    With phi the features, J linear in c and dM the increments of `paths`:

    (1) ``z_k = sum_(s <= k) (lam e^(-discount))^(t_k - t_s) phi(t_s, X_s)``
    (2) ``E sum_k z_k dM_k = A c + b = 0``, ``A = E sum_k z_k (e^(-discount dt) phi_(k+1) - phi_k)'``, phi_K = 0
    (3) ``Cov c = A^-1 Cov(A_n c + b_n) A^-T / N`` over the N paths n

    No step sizes and no iterations; the first choice where features are at hand.

    Parameters
    ----------
    features : callable
        ``features(t, x)``, a vector of length p; static.
    paths : Paths
    base : callable, optional
        A known part of the value, such as the payoff, ``base(t, x)``. Static.
    lam : scalar
        In [0, 1]. 0: test functions are the features now, least variance. 1: all features so far, which is regression
        on outcomes, the exact minimiser of `martingale_loss`: best in mean square where the features do not span the
        value. Traced.

    Returns
    -------
    LinearValue
        Coefficients with their covariance over paths; check `condition`, and `orthogonality` with other test functions.

    Raises
    ------
    ValueError
        Features that are no vector, or a `lam` outside [0, 1].

    Notes
    -----
    The discretisation's bias is of the order of the step. Cost ``N K p^2``, memory a few thousand paths at a time. The
    covariance is that of estimating equations, exact for many paths. The payoff replaces J at the last time.

    References
    ----------
    Y. Jia, X. Y. Zhou, *Policy evaluation and temporal-difference learning in continuous time and space: a martingale
    approach*, JMLR 23 (2022), section 4.2.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import Paths, lstd, simulate
    >>> times = jnp.linspace(0, 1, 51)
    >>> x = simulate(lambda t, x, a: 0 * x, lambda t, x, a: 1 + 0 * x, jnp.zeros((4000, 1)), times, jax.random.key(3))
    >>> paths = Paths(times, x, x[:, -1, 0] ** 2)
    >>> fit = lstd(lambda t, x: jnp.stack([x[0] ** 2, 1 - t]), paths)
    >>> print(fit.coefficients.round(1))
    [1. 1.]
    """
    name = "lstd"
    if isinstance(lam, int | float) and not 0 <= lam <= 1:
        checks.fail(name, "lam", "in [0, 1]", lam)
    shape = jax.eval_shape(features, paths.times[0], paths.states[0, 0]).shape
    if len(shape) != 1:
        checks.fail(name, "features", "a function with a vector as its value", f"shape {shape}")
    dtype = paths.states.dtype
    lam = jnp.asarray(lam, dtype)

    def one(track):
        phi = jax.vmap(features)(track.times, track.states).astype(dtype)
        offset = (
            jnp.zeros_like(track.times) if base is None else jax.vmap(base)(track.times, track.states).astype(dtype)
        )
        # The coefficients of the increments: dM = offsets' increments + c . changes.
        changes = track.decay[:, None] * phi.at[-1].set(0)[1:] - phi[:-1]  # (2)
        known = track.increments(offset)

        def trace(z, data):
            decay, phi = data
            z = decay * z + phi  # (1)
            return z, z

        fade = lam**track.steps * track.decay
        _, z = jax.lax.scan(trace, jnp.zeros_like(phi[0]), (jnp.concatenate([fade[:1], fade[:-1]]), phi[:-1]))
        return matmul(z.T, changes), matmul(z.T, known)  # (2)

    A, b = over_paths(one, paths)
    mean, right = jnp.mean(A, axis=0), jnp.mean(b, axis=0)
    size = jnp.sqrt(jnp.abs(jnp.diagonal(mean)))
    size = jnp.where(size > 0, size, 1)
    scaled = mean / (size[:, None] * size[None, :])
    condition = jnp.linalg.cond(scaled)
    told = condition < 0.1 / eps(dtype)
    safe = jnp.where(told, scaled, jnp.eye(scaled.shape[0], dtype=dtype))
    inverse = jnp.linalg.inv(safe) / (size[:, None] * size[None, :])
    c = -matmul(inverse, right)  # (2)
    missed = jnp.einsum("npq,q->np", A, c, precision="highest") + b
    spread = matmul(missed.T, missed) / missed.shape[0] ** 2
    covariance = matmul(inverse, matmul(spread, inverse.T))  # (3)
    nothing = jnp.where(told, 0, jnp.nan).astype(dtype)
    return LinearValue(c + nothing, covariance + nothing, condition, features, base)
