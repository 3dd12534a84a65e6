"""Training a network to propose directions: the scale-invariant losses, the published data, and the loop.

Kaneda et al., A Deep Conjugate Direction Method, ICML 2023, trains d = f(r) by

(1) ``|r - a A d|^2 / |r|^2,  a = d'r / d'A d``
(2) ``r = sum_i c_i v_i`` over its length, v_i the Ritz vectors in ascending order, ``c_i ~ weight N(0, 1)`` for the low
    ones

By default `fit_preconditioner` departs from it, on residuals that the solver meets:

(3) ``1 - (d'r)^2 / (d'A d r'A^-1 r)``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax

from ...core import checks
from ...core.krylov.lanczos import lanczos, ritz_vectors
from ...core.precision import eps, matmul
from ...core.typing import Array, Float, Progress
from ..systems.system import System

MOST_REUSES = 16
"""About how many steps a right-hand side is followed before a new one takes its place."""


def energy_residual_loss(system: System, direction: Float[Array, "*n"], r: Float[Array, "*n"]) -> Float[Array, ""]:
    """Return ``|r - a A d|^2 / |r|^2`` with the step ``a = d'r / d'A d`` of the line search.

    The residual after one step from r along d, whose scale does not matter: no solution is needed.

    Parameters
    ----------
    system : System
        A, symmetric positive definite.
    direction, r : Float[Array, "*n"]
        d and r. Differentiable.

    Returns
    -------
    Float[Array, ""]
        Zero at ``d = c A^-1 r`` and nowhere else; one where ``d'A d = 0``.

    References
    ----------
    Kaneda et al. (ICML 2023).
    """
    product = system.mv(direction)
    step = _ratio(jnp.sum(direction * r), jnp.sum(direction * product))
    return _ratio(jnp.sum((r - step * product) ** 2), jnp.sum(r * r))  # (1)


class RitzDataset(NamedTuple):
    """Residuals of length one (samples, *n), and the Ritz values of the vectors that they are made of."""

    residuals: Array
    values: Array


def ritz_dataset(
    system: System, shape: tuple[int, ...], key: Array, *, samples: int, vectors: int, low: int = 0, weight: float = 9.0
) -> RitzDataset:
    """Return the published training data: random combinations of Ritz vectors, those of small values weighted up.

    Parameters
    ----------
    system : System
        Symmetric positive (semi)definite.
    shape : tuple of int
        Of a right-hand side. Static.
    key : PRNG key
    samples, vectors : int
        How many residuals, of how many steps of Lanczos' method with reorthogonalisation. Static; ``vectors`` arrays
        of the size of the grid are stored.
    low : int
        How many beyond half of the vectors are weighted up. Static.
    weight : float
        By how much.

    Returns
    -------
    RitzDataset

    Notes
    -----
    The authors take 10,000 vectors, ``low=500`` and 20,000 samples.

    References
    ----------
    Kaneda et al. (ICML 2023), section 4.1 and their code.
    """
    one, two = jax.random.split(key)
    dtype = jax.tree.leaves(eqx.filter(system, eqx.is_inexact_array))[0].dtype
    start = jax.random.normal(one, shape, dtype)
    found = lanczos(lambda x: system.mv(x.reshape(shape)).ravel(), start.ravel(), vectors)
    values = found.ritz()[0]
    basis = ritz_vectors(found)
    # Zero modes, and what lies behind an early end of the Krylov space, whose vectors vanish.
    good = (values > 100 * eps(dtype) * jnp.max(values)) & (jnp.sum(basis**2, 1) > 0.5)
    share = jnp.where(jnp.arange(vectors) < vectors // 2 + low, weight, 1.0).astype(dtype)
    c = jax.random.normal(two, (samples, vectors), dtype) * jnp.where(good, share, 0)[None]
    b = matmul(c, basis)  # (2)
    return RitzDataset((b / jnp.linalg.norm(b, axis=1, keepdims=True)).reshape(samples, *shape), values)


class TrainedPreconditioner(NamedTuple):
    """A trained network and the mean loss of each step."""

    model: Any
    losses: Float[Array, " steps"]


class _Pool(NamedTuple):
    """Residuals with their errors ``A^-1 r``, and the systems and geometries that they belong to."""

    residuals: Array
    errors: Array
    systems: Any
    geometry: Any


def fit_preconditioner(
    model: Any,
    system: System | Callable[[Array], Any],
    shape: tuple[int, ...],
    key: Array,
    *,
    steps: int,
    batch: int = 8,
    learning_rate: float = 2e-3,
    geometry: Float[Array, "*n"] | None = None,
    residuals: Float[Array, "samples *n"] | None = None,
    progress: Progress | None = None,
) -> TrainedPreconditioner:
    """Train a network to propose directions for `flexible_cg` on one system or on a family of them.

    By default on the residuals that the solver itself meets: a pool of right-hand sides with known solutions is taken a
    step further with the network's own directions after each step of the training, and some are drawn anew.

    Parameters
    ----------
    model : ConvPreconditioner or module
        ``model(r)``, or ``model(r, geometry)`` where a geometry is given.
    system : System or callable
        A; or ``system(key)`` that draws one, and then its geometry: ``(A, geometry)``.
    shape : tuple of int
        Of a right-hand side.
    key : PRNG key
    steps, batch : int
        Steps of Adam, and residuals in each.
    learning_rate : float
        Its largest; it rises for a twentieth of the steps and falls along a cosine.
    geometry : Float[Array, "*n"], optional
        One inside the domain and zero outside, for a single system.
    residuals : Float[Array, "samples *n"], optional
        Train on these instead, with `energy_residual_loss`, as published; see `ritz_dataset`.
    progress : callable, optional
        Called on the host as ``progress(step, loss)`` fifty times.

    Returns
    -------
    TrainedPreconditioner
        ``model`` and ``losses``.

    Raises
    ------
    ValueError, TypeError
        For `residuals` of another shape, or together with a family of systems.

    Notes
    -----
    The default loss is ``1 - (d'r)^2 / (d'A d r'A^-1 r)``: by how much one step along d leaves the energy norm of the
    error, squared, unreduced. It needs ``A^-1 r``, known because solutions are drawn and right-hand sides computed.
    Solutions are sums of noise on grids of all sizes. The same key gives the same network on one machine.

    References
    ----------
    Kaneda et al., A Deep Conjugate Direction Method for Iteratively Solving Linear Systems, ICML 2023.

    Examples
    --------
    >>> import jax
    >>> from solvers import ConvPreconditioner, Stencil, fit_preconditioner
    >>> model = ConvPreconditioner.init(jax.random.key(3), 2, channels=4, levels=2)
    >>> trained = fit_preconditioner(model, Stencil.laplacian(2), (8, 8), jax.random.key(4), steps=60)
    >>> bool(trained.losses[-10:].mean() < trained.losses[:10].mean())
    True
    """
    name = "fit_preconditioner"
    family = not isinstance(system, System)
    if family and not callable(system):
        checks.fail(name, "system", "a System or a callable that draws one", type(system).__name__, TypeError)
    if residuals is not None and (family or jnp.shape(residuals)[1:] != tuple(shape)):
        checks.fail(name, "residuals", f"of shape (samples, *{shape}), for one system", jnp.shape(residuals))
    shape, draw = tuple(shape), system if family else lambda _: (system, geometry)
    dtype = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))[0].dtype

    def rate(count):
        t = count.astype(dtype) / steps
        return learning_rate * jnp.minimum(20 * t + 1 / steps, 1) * (0.51 + 0.49 * jnp.cos(jnp.pi * t))

    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def fresh(key) -> _Pool:
        one, two = jax.random.split(key)
        found, inside = draw(one)
        e = _waves(two, shape, dtype)
        e = e if inside is None else e * inside.astype(dtype)
        r = found.mv(e)
        unit = jnp.sqrt(jnp.sum(r * r))
        return _Pool(r / unit, e / unit, found if family else None, inside if family else None)

    def one(model, pool: _Pool):
        here = pool.systems if family else system
        inside = pool.geometry if family else geometry
        d = model(pool.residuals) if inside is None else model(pool.residuals, inside)
        product, gain = here.mv(d), jnp.sum(d * pool.residuals)
        curvature, energy = jnp.sum(d * product), jnp.sum(pool.errors * pool.residuals)
        loss = 1 - _ratio(gain**2, curvature * energy)  # (3)
        step = lax.stop_gradient(_ratio(gain, curvature))
        r, e = lax.stop_gradient((pool.residuals - step * product, pool.errors - step * d))
        unit = jnp.sqrt(jnp.sum(r * r))
        unit = jnp.where(unit > 0, unit, 1)
        return loss, pool._replace(residuals=r / unit, errors=e / unit)

    def loss_of(model, pool):
        losses, moved = jax.vmap(lambda p: one(model, p))(pool)
        return jnp.mean(losses), moved

    def published(model, sample):
        A: Any = system
        directions = jax.vmap(lambda r: model(r) if geometry is None else model(r, geometry))(sample)
        return jnp.mean(jax.vmap(lambda d, r: energy_residual_loss(A, d, r))(directions, sample)), sample

    def step(carry, key):
        model, state, pool = carry
        one, two = jax.random.split(key)
        if residuals is None:
            renew = jax.random.uniform(one, (batch,)) < 1 / MOST_REUSES
            new = jax.vmap(fresh)(jax.random.split(two, batch))
            pool = jax.tree.map(lambda a, b: jnp.where(renew.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, pool)
            function = loss_of
        else:
            pool = residuals[jax.random.randint(one, (batch,), 0, residuals.shape[0])].astype(dtype)
            function = published
        (loss, pool), slope = eqx.filter_value_and_grad(function, has_aux=True)(model, pool)
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes integers and floats
            updates, state = optimiser.update(slope, state, eqx.filter(model, eqx.is_inexact_array))
        return (eqx.apply_updates(model, updates), state, pool), loss

    first, keys = jax.random.split(key)
    pool: Any = (
        jax.vmap(fresh)(jax.random.split(first, batch)) if residuals is None else residuals[:batch].astype(dtype)
    )
    if residuals is not None and pool.shape[0] < batch:
        checks.fail(name, "residuals", f"at least {batch} of them", residuals.shape[0])
    carry = (model, optimiser.init(eqx.filter(model, eqx.is_inexact_array)), pool)
    train = jax.jit(lambda carry, keys: lax.scan(step, carry, keys))
    losses, done, keys = [], 0, jax.random.split(keys, steps)
    chunk = max(1, steps // 50) if progress is not None else steps
    for k in range(0, steps, chunk):
        carry, seen = train(carry, keys[k : k + chunk])
        losses.append(seen)
        done += len(seen)
        if progress is not None:
            progress(done, float(seen[-1]))
    return TrainedPreconditioner(carry[0], jnp.concatenate(losses))


def _waves(key, shape, dtype):
    """Return noise on the grid, its half, its quarter, ..., each with a random share, added up."""
    count = max(1, max(shape).bit_length() - 1)
    one, *keys = jax.random.split(key, count + 1)
    shares = jnp.exp(2 * jax.random.normal(one, (count,), dtype))
    total = jnp.zeros(shape, dtype)
    for level, (k, share) in enumerate(zip(keys, shares, strict=True)):
        coarse = tuple(max(1, -(-n // 2**level)) for n in shape)
        noise = jax.random.normal(k, coarse, dtype)
        total = total + share * (noise if coarse == shape else jax.image.resize(noise, shape, "linear"))
    return total


def _ratio(a, b):
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1), 0)
