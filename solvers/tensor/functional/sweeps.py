"""One sweep of conditional expectation propagation over the factors, the core and the noise.

Of Fang and others (ICLR 2024), numbered as in the comments; `messages` has the moments of a and phi. Entries are
indexed by n, nodes of mode k by t, tau is E of the noise's inverse variance, and observed entries only are summed:

(1) ``precision_t = tau sum_(n at t) E[a_n a_n']``, ``shift_t = tau sum_(n at t) y_n E[a_n]``: messages to a factor
(2) ``natural <- rho natural_old + (1 - rho) natural_new``: damped messages
(3) ``q(u_k) ~ GP prior x prod_t exp(-u_t' precision_t u_t / 2 + shift_t' u_t)``, its marginals by a Kalman smoother
(4) ``q(w) = N(cov (tau sum y E[phi] + shift_0), cov)``, ``cov = (tau sum E[phi phi'] + precision_0)^-1``: the core
(5) ``tau ~ Gamma(shape_0 + N / 2, rate_0 + sum (y_n - E f_n)^2 / 2 + sum Var f_n / 2)``, ``E tau = shape / rate``

It departs from the authors' code in (1), where the core's variance belongs to ``E[a a']``; in (3), where the process is
the only prior of a factor, without a unit normal at each node besides; and in (2), where rho is zero unless asked for.
With `published` the first two are as there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.typing import Array, Float, Int
from .chains import Chains, Factors, Sites, marginals
from .messages import Core, at_entries, core_by_cg, core_terms, fitted, pairs, to_mode


class CorePrior(NamedTuple):
    """A Gaussian of the core: precision and precision times mean."""

    precision: Float[Array, "S S"]
    shift: Float[Array, " S"]


class Model(NamedTuple):
    """Data and priors, all arrays: what a sweep needs and derivatives are taken in.

    Attributes
    ----------
    y, weight : [Array, "N"], [Array, "N"]
        Values, and 1 where there is one.
    chains : Chains
        Priors of the factors.
    sites : Sites or None
        What earlier data said of them.
    core : CorePrior or Array or None
        Prior of the core; for conjugate gradients the variance of its entries.
    noise : tuple of arrays
        Its variance, or shape and rate of the Gamma prior of its inverse.
    """

    y: Array
    weight: Array
    chains: Chains
    sites: Sites | None
    core: Any
    noise: tuple[Array, ...]


class Method(eqx.Module):
    """How a sweep goes: where the entries are, and what is static."""

    index: Int[Array, "K N"]
    block: int = eqx.field(static=True)
    tucker: bool = eqx.field(static=True)
    dense: bool = eqx.field(static=True)
    published: bool = eqx.field(static=True)


class Beliefs(NamedTuple):
    """What is believed: factors at their nodes, the core or None, and the expected inverse variance of the noise."""

    factors: Factors
    core: Core | None
    precision: Float[Array, ""]


class Swept(NamedTuple):
    """Beliefs, the messages that made them, and how the sweep went.

    Attributes
    ----------
    beliefs : Beliefs
    sites, natural : Sites, CorePrior or None
        Messages to the factors and the core.
    change : [Array, ""]
        How far the beliefs of the entries moved, relative to what was seen.
    kept : [Array, ""]
        What conditioning left of the variance that it took down most.
    """

    beliefs: Beliefs
    sites: Sites
    natural: Any
    change: Float[Array, ""]
    kept: Float[Array, ""]


def second_moment(core: Core | None, K: int, R: int, published: bool) -> Array | None:
    """Return ``E w w'`` in pairs, or None where the core's mean does; as published its variance is left out."""
    if core is None or core.cov is None:
        return None
    flat = core.mean.reshape(-1)
    cov = jnp.zeros_like(core.cov) if published else core.cov
    return pairs(cov + flat[:, None] * flat[None, :], K, R)


def messages(model: Model, index, a, aa, precision: Array, nodes: int) -> Sites:
    """Return what all entries say of one mode's factor at its nodes."""
    weight = precision * model.weight
    gather = lambda x: jax.ops.segment_sum(x, index, num_segments=nodes)  # noqa: E731
    return Sites(gather(weight[:, None, None] * aa), gather((weight * model.y)[:, None] * a))  # (1)


def whole(model: Model, said: Sites, index, before: Sites | None, published: bool) -> Sites:
    """Return messages with those of earlier data; as published with a unit prior wherever there is an entry."""
    if before is not None:
        said = jax.tree.map(jnp.add, said, before)
    if not published:
        return said
    T, R = said.shift.shape
    here = (jax.ops.segment_sum(model.weight, index, num_segments=T) > 0).astype(said.shift.dtype)
    return said._replace(precision=said.precision + here[:, None, None] * jnp.eye(R, dtype=here.dtype)[None])


@eqx.filter_jit
def sweep(model: Model, method: Method, last: Swept, damping: tuple[Array, Array, Array]) -> Swept:
    """Return beliefs after one pass over all modes, then the core, then the noise."""
    beliefs = last.beliefs
    K, T, R = beliefs.factors.mean.shape
    core, precision = beliefs.core, beliefs.precision
    full = second_moment(core, K, R, method.published)

    def mode(carry, given):
        entries, core, full = carry
        k, chain, index, old, before = given
        a, aa = to_mode(k, entries, core, full)
        fit = jnp.sum(a * entries.mean[k], -1), jnp.sum(aa * entries.second[k], (-2, -1))
        said = damped(old, messages(model, index, a, aa, precision, T), damping[0])  # (1), (2)
        # (3)
        new, kept = marginals(chain, whole(model, said, index, before, method.published), method.block)
        mean, cov = new.mean[index], new.cov[index]
        entries = type(entries)(
            entries.mean.at[k].set(mean), entries.second.at[k].set(cov + mean[:, :, None] * mean[:, None, :])
        )
        core, full = turned(core, full)
        return (entries, core, full), (new, said, kept, fit)

    start = (at_entries(beliefs.factors, method.index), core, full)
    modes = (jnp.arange(K, dtype=jnp.int32), model.chains, method.index, last.sites, model.sites)
    (entries, core, full), (factors, sites, kept, fits) = jax.lax.scan(mode, start, modes)
    natural = last.natural
    if core is not None:
        core, natural = core_step(model, method, entries, core, precision, (natural, damping[1]))
        full = second_moment(core, K, R, False)
    fit = fitted(entries, core, full)
    new = noise_step(model, fit, precision, damping[2])
    moved = change((fits[0][0], fits[1][0]), fit, (precision, new), model)
    return Swept(Beliefs(factors, core, new), sites, natural, moved, jnp.min(kept))


def damped(old, new, amount: Array):
    """Return natural parameters between the old ones and the new."""
    return jax.tree.map(lambda x, y: amount * x + (1 - amount) * y, old, new)  # (2)


def core_step(model: Model, method: Method, entries, core: Core, precision: Array, old) -> tuple[Core, Any]:
    """Return the core given everything else, and its messages."""
    natural, amount = old
    shape = core.mean.shape
    if not method.dense:
        mean = core_by_cg(entries, model.y, model.weight, (precision, model.core))
        return Core(amount * core.mean + (1 - amount) * mean, None), natural
    P, h = core_terms(entries, model.y, model.weight)
    natural = damped(natural, CorePrior(precision * P, precision * h), amount)  # (2), (4)
    both = natural.precision + model.core.precision
    eye = jnp.eye(both.shape[0], dtype=both.dtype)
    root = jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(both), eye, lower=True)
    cov = jnp.matmul(root.T, root, precision=jax.lax.Precision.HIGHEST)
    # (4)
    mean = jnp.matmul(cov, natural.shift + model.core.shift, precision=jax.lax.Precision.HIGHEST)
    return Core(mean.reshape(shape), cov), natural


def noise_step(model: Model, fit: tuple[Array, Array], precision: Array, amount: Array) -> Array:
    """Return the expected inverse variance of the noise."""
    if len(model.noise) == 1:
        return 1 / model.noise[0]
    shape, rate = gamma_of(model, fit)
    # (5), (2): in the inverse of tau
    return shape / (amount * shape / precision + (1 - amount) * rate)


def gamma_of(model: Model, fit: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return shape and rate of the belief of the noise's inverse variance."""
    mean, second = fit
    squares = (model.y - mean) ** 2 + jnp.maximum(second - mean**2, 0)
    shape, rate = model.noise
    return shape + jnp.sum(model.weight) / 2, rate + jnp.sum(model.weight * squares) / 2  # (5)


def all_sites(model: Model, method: Method, beliefs: Beliefs) -> Sites:
    """Return what entries and earlier data say of every mode, all others being as they are."""
    K, T, R = beliefs.factors.mean.shape
    entries = at_entries(beliefs.factors, method.index)

    def mode(carry, given):
        core, full = carry
        k, index, before = given
        said = messages(model, index, *to_mode(k, entries, core, full), beliefs.precision, T)
        return turned(core, full), whole(model, said, index, before, method.published)

    start = (beliefs.core, second_moment(beliefs.core, K, R, method.published))
    return jax.lax.scan(mode, start, (jnp.arange(K, dtype=jnp.int32), method.index, model.sites))[1]


def turned(core: Core | None, full: Array | None) -> tuple[Core | None, Array | None]:
    """Return a core whose axes begin at the next mode."""
    if core is None:
        return None, None
    return core._replace(mean=jnp.moveaxis(core.mean, 0, -1)), None if full is None else jnp.moveaxis(full, 0, -1)


def change(before: tuple[Array, Array], after: tuple[Array, Array], precisions, model: Model) -> Array:
    """Return how far apart two beliefs of the entries are, and of the noise, relative to what was seen."""
    count = jnp.maximum(jnp.sum(model.weight), 1)
    old, new = (1 / p for p in precisions)
    size = jnp.sum(model.weight * model.y**2) / count + new
    rms = lambda x, y: jnp.sqrt(jnp.sum(model.weight * (x - y) ** 2) / count)  # noqa: E731
    means, seconds = (rms(x, y) for x, y in zip(before, after, strict=True))
    return jnp.maximum(means / jnp.sqrt(size), jnp.maximum(seconds, jnp.abs(new - old)) / size)
