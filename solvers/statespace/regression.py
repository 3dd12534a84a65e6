"""Gaussian-process regression of one variable in linear time, on irregular points, with gaps."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import fail, float_array, known
from ..core.gaussian.filtering import Steps
from ..core.gaussian.kernels import Kernel
from ..core.gaussian.sde import StateSpaceKernel, to_sde
from ..core.precision import matmul
from ..core.typing import Array, Bool, Float, Scalar
from .models import Beliefs, GaussianStatus, beliefs_of


class GPBeliefs(Beliefs):
    """A Gaussian process given data, made by `gp_regression`.

    Attributes
    ----------
    mean, covariance : Float[Array, "M"]
        Of the function (without noise) at the points asked for: `covariance` holds the variances.
    log_likelihood : Float[Array, ""]
        Logarithm of the density of the data.
    status : Int[Array, ""]
        0 when solved; ``GaussianStatus(code)`` decodes the others.
    missing_variance : Float[Array, ""]
        A bound on the kernel's entries left out: zero but where the series of a periodic kernel was cut.
    """

    missing_variance: Float[Array, ""]

    @property
    def variance(self) -> Array:
        """The variances."""
        return self.covariance


def gp_regression(
    kernel: Kernel | StateSpaceKernel,
    times: Float[Array, " T"],
    y: Float[Array, " T"],
    noise: Scalar | Float[Array, " T"],
    *,
    at: Float[Array, " M"] | None = None,
    observed: Bool[Array, " T"] | None = None,
    form: str = "covariance",
    method: str = "sequential",
    block: int | None = None,
    harmonics: int = 12,
) -> GPBeliefs:
    """Return a Gaussian process given noisy values of it, exactly and in time linear in their number.

    ``y_i = f(times_i) + noise`` (1), f of mean zero and covariance ``kernel(t - t')``. For functions of several
    variables see `gp_solve`, for a general model `kalman_smoother`.

    Parameters
    ----------
    kernel : Kernel
        See `to_sde` for those that have a state-space form; lengths in the units of `times`. Differentiable.
    times : Float[Array, "T"]
        Not falling; differentiable. Equal ones are allowed.
    y : Float[Array, "T"]
        Values; differentiable.
    noise : scalar or Float[Array, "T"]
        Variance of the noise; differentiable.
    at : Float[Array, "M"], optional
        Where the function is asked for, in any order; at `times` by default.
    observed : Bool[Array, "T"], optional
        Which values were seen; all by default. What the others hold does not matter.
    form, method, block
        As in `kalman_smoother`.
    harmonics : int
        Of periodic kernels, see `to_sde`. Static.

    Returns
    -------
    GPBeliefs
        ``mean, variance`` at the points, ``log_likelihood``, ``status``.

    Raises
    ------
    ValueError, TypeError
        For shapes, dtypes or options that do not fit, and for times that fall, when they are known while tracing.

    Notes
    -----
    A step over a gap d, of the state-space form of the kernel, is

    (2) ``x(t + d) = A(d) x(t) + q,  cov q = Q(d),  f = H x``

    O(T n^3) for n states of the kernel; memory O(T n^2). Noise far below the kernel's variance (1e-7 of it in float64,
    3e-4 in float32) asks for the square-root form, and the status says so. The process's noise over a gap comes from
    closed forms without cancellation, so gaps of any size may be next to each other. Times that fall inside jit are
    status `GaussianStatus.UNSORTED`.

    References
    ----------
    J. Hartikainen, S. Sarkka, *Kalman filtering and smoothing solutions to temporal Gaussian process regression
    models*, MLSP 2010.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Matern, gp_regression
    >>> t = jnp.array([0.0, 0.1, 0.5, 0.55])
    >>> found = gp_regression(Matern(length=0.5, nu=1.5), t, jnp.sin(6 * t), 1e-3, at=jnp.array([0.05, 3.0]))
    >>> print(bool(abs(found.mean[0] - 0.3) < 0.1), jnp.round(found.variance, 2), found.message)
    True [0. 1.] solved
    """
    name = "gp_regression"
    times, y = float_array(name, "times", times, ndim=1), float_array(name, "y", y, ndim=1)
    dtype, T = times.dtype, times.shape[0]
    if y.shape != times.shape or y.dtype != dtype or not T:
        fail(name, "y", f"of the times' shape {times.shape} and dtype {dtype}", f"{y.dtype} {y.shape}")
    noise = float_array(name, "noise", noise, dtype=dtype)
    if noise.shape not in ((), (T,)):
        fail(name, "noise", f"a scalar or ({T},)", f"shape {noise.shape}")
    seen = jnp.ones(T, bool) if observed is None else jnp.asarray(observed)
    if seen.shape != (T,) or seen.dtype != jnp.bool_:
        fail(name, "observed", f"booleans ({T},)", f"{seen.dtype} {seen.shape}")
    if known(times) and bool(np.any(np.diff(np.asarray(times)) < 0)):
        fail(name, "times", "not falling", "some that fall")
    sde = kernel if isinstance(kernel, StateSpaceKernel) else to_sde(kernel, harmonics=harmonics, dtype=dtype)
    if at is not None:
        at = float_array(name, "at", at, ndim=1, dtype=dtype)
    # a Python number would be part of the program
    sde = jax.tree.map(lambda x: jnp.asarray(x, dtype) if isinstance(x, float) else x, sde)
    return _regressed(
        name, sde, (times, y, jnp.broadcast_to(noise.astype(dtype), (T,)), seen), at, (form, method, block)
    )


@eqx.filter_jit  # one program, not hundreds of small ones
def _regressed(name: str, sde: StateSpaceKernel, data, at, how) -> GPBeliefs:
    times, y, noise, seen = data
    dtype, T = times.dtype, times.shape[0]
    sorted_ = jnp.all(times[1:] >= times[:-1])
    place = None
    if at is not None:
        M = at.shape[0]
        order = jnp.argsort(jnp.concatenate([times, at]), stable=True)
        place = jnp.zeros(T + M, order.dtype).at[order].set(jnp.arange(T + M, dtype=order.dtype))[T:]
        blank = jnp.zeros(M, dtype)
        times, y, noise = (
            jnp.concatenate(x)[order] for x in ((times, at.astype(dtype)), (y, blank), (noise, blank + 1))
        )
        seen = jnp.concatenate([seen, jnp.zeros(M, bool)])[order]
    steps = _process(sde, times, y, noise)  # (1)
    found = beliefs_of(name, steps, seen[:, None], how, False)
    H = sde.observation()
    mean = matmul(found.mean, H)  # (2)
    variance = jnp.sum(matmul(found.covariance, H) * H[None], axis=-1)
    if place is not None:
        mean, variance = mean[place], variance[place]
    # a length that is not positive makes a process that grows; times that fall do too, and say so below
    grows = jnp.any(jnp.abs(jnp.diagonal(steps.A, axis1=-2, axis2=-1)) > 1)
    found = eqx.tree_at(lambda f: f.status, found, jnp.where(grows & sorted_, _worse(found.status), found.status))
    status = jnp.where(sorted_, found.status, jnp.maximum(found.status, int(GaussianStatus.UNSORTED)))
    # a variance below zero by rounding is zero; beyond rounding the status says so
    return GPBeliefs(
        mean, jnp.maximum(variance, 0), found.log_likelihood, status.astype(jnp.int32), sde.missing_variance()
    )


def _worse(status):
    return jnp.where(status == int(GaussianStatus.NONFINITE), status, int(GaussianStatus.INDEFINITE)).astype(jnp.int32)


def _process(sde: StateSpaceKernel, times, y, noise) -> Steps:
    gaps: Any = jnp.diff(times)
    A, Q = sde.transition(gaps)  # (2)
    n, T = sde.size, times.shape[0]
    P = sde.stationary()
    return Steps(
        jnp.concatenate([jnp.zeros((1, n, n), P.dtype), A]),
        jnp.zeros((T, n), P.dtype),
        jnp.concatenate([P[None], Q]),
        jnp.broadcast_to(sde.observation(), (T, 1, n)),
        y[:, None],
        noise[:, None, None],
    )
