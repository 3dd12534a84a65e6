"""How data enter a diffusion step: five published ways, one interface.

Numbered as in the comments; ``y = A x_0 + s noise``, ``x_0 = E[x_0 | x_t]`` the denoised signal with Jacobian J, alpha
and sigma those of the step, `look.at`. Tweedie's covariance is ``C = sigma^2 / alpha J``.

(1) ``clean = x_0 + C A'(A C A' + s^2 I)^-1 (y - A x_0)``: `SecondOrder`, without directions of negative variance
(2) ``r^2 = v sigma^2 / (alpha^2 v + sigma^2)``: `PiGDM`
(3) ``score = J' A' (r^2 A A' + s^2 I)^-1 (y - A x_0)``
(4) ``clean = x_0 + sigma^2 / alpha score``: Tweedie's formula with the score of the likelihood added
(5) ``shift = -zeta grad_x |y - A x_0|^2 / |y - A x_0|``: `DPS`
(6) ``grad_x (|y - A x_0|^2 + trace z'A C A'z)`` in its place, ``z = +-1``: `STSL`
(7) ``clean = CG_M(I + gamma A'A, x_0 + gamma A'y)`` from x_0: `DDS`
(8) ``(A'A + rho D'D) x = A'y + rho D'(z - u)``, ``z = shrink(D x + u, lambda / rho)``, ``u = u + D x - z``: `DDS` with
    total variation
(9) ``x' = alpha' clean + sigma' (sqrt(1 - eta^2) noise + eta fresh)``

The papers are those of each class. It departs from them in (4), a multiple of (3) that the paper of `PiGDM` adds to the
next point instead, in (6), see `STSL`, and in (9), the form of the authors' code.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ...core import checks
from ...core.krylov.cg import cg
from ...core.operators import LinearOperator
from ...core.probes import probe
from ...core.prox import GroupL1
from ...core.total_variation import Differences
from ...core.typing import Array
from ...core.vectors import axpy, combine, inner, norm
from ..forward.quadratic import prox_quadratic, split_system
from .conditioning import condition
from .sampling import Around, renoise
from .tweedie_formulas import Noised, covariance


class Measured(NamedTuple):
    """Data ``y = A x_0 + deviation noise``."""

    operator: LinearOperator
    y: Any
    deviation: Array


class Look(NamedTuple):
    """What the model says at a point: `denoise` as a function, the point, its time, and the denoised signal there."""

    denoise: Callable[[Array], Array]
    x: Array
    at: Noised
    clean: Array

    def noise_of(self, clean: Array) -> Array:
        """Return the noise that goes with a clean signal: ``x = alpha clean + sigma noise``."""
        return (self.x - self.at.alpha * clean) / self.at.sigma


class Guided(NamedTuple):
    """Clean signal and noise to step with, a shift of the next point, and what is carried to the next step."""

    clean: Array
    noise: Array
    shift: Array
    carry: Any


class Guidance(eqx.Module):
    """How data enter a diffusion step.

    Attributes
    ----------
    eta : scalar
        Share of fresh noise in a step, as in `DDIM`; each method has its published default.
    multistep : bool
        Whether the clean signal is extrapolated from the last two steps, which makes a step without fresh noise second
        order; of a class.
    """

    eta: eqx.AbstractVar[Any]
    multistep: ClassVar[bool] = False

    def begin(self, x: Array) -> Any:
        """Return what is carried from step to step; nothing by default."""
        return None

    def doubted(self, carry: Any) -> Array:
        """Return in how many steps so far the model was not taken at its word; none by default."""
        return jnp.zeros((), jnp.int32)

    @abstractmethod
    def __call__(self, data: Measured, look: Look, carry: Any, key: Array) -> Guided:
        """Return what to step with."""

    def renoise(self, clean: Array, noise: Array, fresh: Array, a: Around) -> Array:
        """Return the next point: the clean signal with some of the old noise and some fresh."""
        return renoise(clean, noise, fresh, self.eta, a)


class SecondOrder(Guidance):
    """Exact Gaussian conditioning on Tweedie's covariance: ``x_0 + C A'(A C A' + s^2 I)^-1 (y - A x_0)``.

    With C the covariance of x_0 given x_t, this is the posterior mean wherever x_0 given x_t is normal: the sampler is
    then exact but for the step. For other priors it is the best Gaussian fit at each time. C is never formed: a Krylov
    method in the space of the data, one forward and one reverse derivative of the model in each of its steps.

    The Jacobian of a learned model is no covariance: it is not symmetric, and along some directions it is negative.
    The symmetric part is taken, and data do not move the signal along directions whose variance it says is negative
    (taken as they come, they lose one sample in eight on small images, and all of larger ones). In how many of the
    diffusion steps there were any, ``posterior_sample(..., details=True)`` says.

    Attributes
    ----------
    cg_steps : int
        At most; as many vectors like the data are kept. Static.
    rtol : scalar
        Residual relative to ``y - A x_0`` at which they stop; traced.
    eta : scalar
        0 by default.
    """

    cg_steps: int = eqx.field(static=True, default=20)
    rtol: Any = 1e-4
    eta: Any = 0.0
    multistep: ClassVar[bool] = True

    def __check_init__(self):
        if isinstance(self.cg_steps, bool) or not isinstance(self.cg_steps, int) or self.cg_steps < 1:
            checks.fail("SecondOrder", "cg_steps", "a positive Python integer", self.cg_steps)

    def begin(self, x):
        """Return in how many steps a negative variance was met."""
        return jnp.zeros((), jnp.int32)

    def doubted(self, carry):
        """Return in how many steps a negative variance was met."""
        return carry

    def __call__(self, data, look, carry, key):
        """Return the conditioned mean, and the noise that goes with it."""
        A, rest = data.operator, axpy(-1, data.operator.mv(look.clean), data.y)
        C = covariance(look.denoise, look.x, look.at)
        flat, shaped = ravel_pytree(rest)

        def spread(q):
            back = A.transpose_mv(shaped(q))
            # Halves of C and C': of a learned model C is not quite symmetric.
            return axpy(0.5, C.mv(back), 0.5 * C.transpose_mv(back))

        product = lambda q: ravel_pytree(A.mv(spread(q)))[0]  # noqa: E731
        found = condition(product, flat, data.deviation**2, self.cg_steps, self.rtol)
        clean = look.clean + spread(found.q)  # (1)
        return Guided(clean, look.noise_of(clean), jnp.zeros_like(clean), carry + found.negative.astype(carry.dtype))


class PiGDM(Guidance):
    """Pseudo-inverse guidance: x_0 given x_t taken as white.

    Its covariance is ``r^2 I`` with ``r^2 = v sigma^2 / (alpha^2 v + sigma^2)``, that of white noise of variance v.
    Cheaper than `SecondOrder` by the derivatives inside conjugate gradients, and off by as much as the prior is from
    white noise of variance v.

    Attributes
    ----------
    variance : scalar
        v, of the prior in each direction; 1 by default. Traced.
    cg_steps : scalar
        At most, for ``(r^2 A A' + s^2 I)^-1``; traced.
    eta : scalar
        1 in the paper; 0 here by default, the probability flow.

    References
    ----------
    Song, Vahdat, Mardani, Kautz, "Pseudoinverse-guided diffusion models for inverse problems", ICLR 2023.
    """

    variance: Any = 1.0
    cg_steps: Any = 50
    eta: Any = 0.0
    multistep: ClassVar[bool] = True

    def __call__(self, data, look, carry, key):
        """Return the mean moved along the likelihood's score, by one reverse derivative."""
        A, at = data.operator, look.at
        rest = axpy(-1, A.mv(look.clean), data.y)
        wide = self.variance * at.sigma**2 / (at.alpha**2 * self.variance + at.sigma**2)  # (2)
        # (3)
        found = cg(
            lambda q: combine((wide, A.mv(A.transpose_mv(q))), (data.deviation**2, q)),
            rest,
            tol=1e-6 * norm(rest),
            max_steps=self.cg_steps,
        )
        score = jax.vjp(look.denoise, look.x)[1](A.transpose_mv(found.x))[0]  # (3)
        clean = look.clean + at.sigma**2 / at.alpha * score  # (4)
        return Guided(clean, look.noise_of(clean), jnp.zeros_like(clean), None)


class DPS(Guidance):
    """Diffusion posterior sampling: after each step, one of gradient descent on the misfit of the denoised signal.

    Attributes
    ----------
    strength : scalar
        zeta: the step is ``zeta grad |y - A x_0|^2 / |y - A x_0|``. To be tuned to the problem. Traced.
    eta : scalar
        1 by default, as in the paper.

    References
    ----------
    Chung, Kim, Mccann, Klasky, Ye, "Diffusion posterior sampling for general noisy inverse problems", ICLR 2023,
    algorithm 1.
    """

    strength: Any = 0.3
    eta: Any = 1.0

    def __call__(self, data, look, carry, key):
        """Return the denoised signal as it is, and the gradient step."""

        def misfit(x):
            rest = axpy(-1, data.operator.mv(look.denoise(x)), data.y)
            return inner(rest, rest)

        value, slope = jax.value_and_grad(misfit)(look.x)
        return Guided(look.clean, look.noise_of(look.clean), descent(self.strength, value, slope), None)


def descent(strength, squared: Array, slope: Array) -> Array:
    """Return ``-strength slope / sqrt(squared)``, zero where there is no misfit."""
    size = jnp.sqrt(jnp.where(squared > 0, squared, 1))
    return -strength * slope / size  # (5)


class STSL(Guidance):
    """Second-order Tweedie from a surrogate loss: `DPS` with the trace of the covariance that the data still see.

    The likelihood of y given x_t is at least ``exp -(|y - A x_0|^2 + Tr A C A') / (2 s^2)`` up to a constant, by
    Jensen's inequality; its gradient is followed, the trace from one random probe a step: ``z'A C A'z``, an exact
    forward derivative of the denoiser.

    Attributes
    ----------
    strength : scalar
        As of `DPS`; traced.
    trace : scalar
        Weight of the trace; 1 is the bound above, 0 is `DPS`. Traced.
    repeats : int
        Gradient steps in each diffusion step ("stochastic averaging"); static.
    eta : scalar
        1 by default.

    Notes
    -----
    The paper works in the latent space of an image model, bounds the same expansion with the isotropic trace
    ``Tr grad^2 log p_t``, and takes it by a finite difference; there is no public code to compare with. Here the probe
    goes through A, and the derivative is exact.

    References
    ----------
    Rout et al., "Beyond first-order Tweedie: solving inverse problems using latent diffusion", CVPR 2024.
    """

    strength: Any = 0.3
    trace: Any = 1.0
    repeats: int = eqx.field(static=True, default=1)
    eta: Any = 1.0

    def __call__(self, data, look, carry, key):
        """Return the denoised signal, and the gradient steps on misfit and trace."""
        A, at = data.operator, look.at

        def surrogate(x, key):
            z = probe("rademacher", key, data.y)
            back = A.transpose_mv(z)
            clean, turned = jax.jvp(look.denoise, (x,), (back,))
            rest = axpy(-1, A.mv(clean), data.y)
            seen = at.sigma**2 / at.alpha * inner(back, turned)
            squared = inner(rest, rest)
            return squared + self.trace * seen, squared  # (6)

        def move(x, key):
            (_, squared), slope = jax.value_and_grad(surrogate, has_aux=True)(x, key)
            return x + descent(self.strength / self.repeats, squared, slope)

        x = look.x
        for k in jax.random.split(key, self.repeats):
            x = move(x, k)
        return Guided(look.clean, look.noise_of(look.clean), x - look.x, None)


class DDS(Guidance):
    """The decomposed diffusion sampler: a few conjugate gradient steps on the denoised signal. A reconstruction method.

    ``x_0' = CG_M(I + gamma A'A, x_0 + gamma A'y)`` from x_0, no derivative of the model; the noise stays the model's.
    It moves the mean towards the data without asking how sure the prior is, so its samples are not from the
    posterior, however many the steps: on a Gaussian prior (20 unknowns, 8 data) means are 0.35 to 0.42 off, where
    second order is 4e-4 off, and the trace of the covariance is 0.62 to 0.80 of the exact one (``bench/inverse.py``).

    Attributes
    ----------
    cg_steps : scalar
        M; traced. Each costs a product with A and one with its transpose.
    gamma : scalar or None
        Weight of the data, or None for exact ones: ``CG_M(A'A, A'y)``.
    total_variation : scalar or None
        With a weight, the data step is one sweep of ADMM on ``|A x - y|^2 / 2 + weight TV(x)`` from the denoised image,
        its split variable and multipliers kept from step to step. gamma is then not used.
    penalty : scalar
        rho of that sweep; traced.
    ndim : int
        Over how many of the last axes total variation differences; static.
    eta : scalar
        ``sqrt(1 - eta^2)`` of the old noise is kept and eta is fresh; 0.85 in the paper.

    References
    ----------
    Chung, Lee, Ye, "Decomposed diffusion sampler for accelerating large-scale inverse problems", ICLR 2024, algorithms
    1-3.
    """

    cg_steps: Any = 5
    gamma: Any = 1.0
    total_variation: Any = None
    penalty: Any = 10.0
    ndim: int = eqx.field(static=True, default=2)
    eta: Any = 0.85

    def begin(self, x):
        """Return split variable and scaled multipliers of total variation."""
        if self.total_variation is None:
            return None
        zero = jnp.zeros((self.ndim, *x.shape), x.dtype)
        return zero, zero

    def __call__(self, data, look, carry, key):
        """Return the denoised signal after the data step, and the model's noise."""
        A, noise = data.operator, look.noise_of(look.clean)
        zero = jnp.zeros_like(look.x)
        if self.total_variation is None:
            # (7)
            clean = prox_quadratic(A, data.y, self.gamma, look.clean, steps=self.cg_steps).x
            return Guided(clean, noise, zero, None)
        z, u = carry
        D = Differences(look.x, self.ndim)
        b = axpy(self.penalty, D.transpose_mv(z - u), A.transpose_mv(data.y))  # (8)
        clean = cg(split_system(A, D, self.penalty), b, look.clean, tol=0.0, max_steps=self.cg_steps).x
        d = D.mv(clean)
        # (8)
        z = GroupL1(self.total_variation, axis=0)(d + u, 1 / self.penalty)
        return Guided(clean, noise, zero, (z, u + d - z))

    def renoise(self, clean, noise, fresh, a):
        """Return the next point with a share eta of fresh noise, as in the authors' code."""
        then = a.cleaner
        return then.alpha * clean + then.sigma * (jnp.sqrt(1 - self.eta**2) * noise + self.eta * fresh)  # (9)
