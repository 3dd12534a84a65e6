"""Factors of a functional tensor as Markov chains: Gaussian processes of all modes, side by side in one shape."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.gaussian.filtering import Steps, filter_steps, mm, mv, smooth_steps, t
from ...core.gaussian.sde import StateSpaceKernel
from ...core.typing import Array, Float


class Chains(NamedTuple):
    """``x_t = A_t x_(t-1) + q_t`` with q of covariance Q, and factors ``u_t = H x_t``; the first step is the prior.

    Attributes
    ----------
    A, Q : [Array, "K T n n"]
        Of each mode, over the gaps between its nodes; nodes that fill up a shorter mode repeat its last one.
    H : [Array, "K R n"]
        Rows of functions that a mode does not have are zero.
    """

    A: Array
    Q: Array
    H: Array


class Sites(NamedTuple):
    """What is said of factors at their nodes: ``-u' precision u / 2 + shift' u``."""

    precision: Float[Array, "K T R R"]
    shift: Float[Array, "K T R"]


class Factors(NamedTuple):
    """Gaussian marginals of the factors at their nodes."""

    mean: Float[Array, "K T R"]
    cov: Float[Array, "K T R R"]


def chains_of(kernels: tuple[StateSpaceKernel, ...], nodes: Float[Array, "K T"], ranks: tuple[int, ...]) -> Chains:
    """Return the chains of so many independent functions a mode, each of its mode's kernel."""
    R, n = max(ranks), max(kernel.size for kernel in kernels)
    A, Q, H = [], [], []
    for kernel, times, rank in zip(kernels, nodes, ranks, strict=True):
        gaps = times[1:] - times[:-1]
        a, q = kernel.transition(gaps)
        fill = [(0, n - kernel.size)] * 2
        a = jnp.pad(jnp.concatenate([jnp.zeros((1, *a.shape[1:]), a.dtype), a]), [(0, 0), *fill])
        q = jnp.pad(jnp.concatenate([kernel.stationary()[None].astype(a.dtype), q]), [(0, 0), *fill])
        h = jnp.pad(kernel.observation(), fill[:1])
        eye = jnp.eye(R, dtype=a.dtype)
        have = jnp.asarray(np.arange(R) < rank, a.dtype)
        A.append(_copies(eye, a))
        Q.append(_copies(eye, q))
        H.append((eye * have[:, None])[:, :, None] * h[None, None, :])
    return Chains(jnp.stack(A), jnp.stack(Q), jnp.stack(H).reshape(len(A), R, R * n))


def _copies(eye, x):
    """Return ``I (x) x`` of matrices x along a leading axis."""
    both = eye[None, :, None, :, None] * x[:, None, :, None, :]
    size = eye.shape[0] * x.shape[-1]
    return both.reshape(-1, size, size)


def marginals(chain: Chains, sites: Sites, block: int) -> tuple[Factors, Array]:
    """Return one mode's factors given its sites, and by how much conditioning took the least variance down."""
    T = chain.A.shape[0]
    H = jnp.broadcast_to(chain.H, (T, *chain.H.shape))
    steps = Steps(chain.A, jnp.zeros(chain.A.shape[:2], H.dtype), chain.Q, H, sites.shift, sites.precision)
    found = filter_steps(steps, block, information=True)
    belief = smooth_steps(steps, found, block)[0]
    variances = [jnp.diagonal(mm(mm(H, b.cov), t(H)), axis1=1, axis2=2) for b in (found.ahead, belief)]
    ahead = variances[0]
    kept = jnp.min(jnp.where(ahead > 0, variances[1] / jnp.where(ahead > 0, ahead, 1), 1))
    return Factors(mv(H, belief.mean), mm(mm(H, belief.cov), t(H))), kept


def merged(kernels, ranks, nodes: Float[Array, "K T"], sites: Sites, new: Float[Array, "K M"]):
    """Return chains over old and new nodes, the old nodes' sites at their places, and the places of the new."""
    T = nodes.shape[1]
    both = jnp.concatenate([nodes, new], axis=1)
    order = jnp.argsort(both, axis=1, stable=True)
    place = jnp.argsort(order, axis=1)

    def moved(x, at):
        return jnp.zeros((both.shape[1], *x.shape[1:]), x.dtype).at[at].set(x)

    moved_sites = jax.tree.map(lambda x: jax.vmap(moved)(x, place[:, :T]), sites)
    return chains_of(kernels, jnp.take_along_axis(both, order, axis=1), ranks), moved_sites, place[:, T:]


def factors_at(kernels, ranks, nodes, sites: Sites, new: Float[Array, "K M"], block: int) -> Factors:
    """Return the marginals of all factors at new coordinates, each given both its neighbours."""
    chains, all_sites, place = merged(kernels, ranks, nodes, sites, new)

    def one(given):
        chain, said, at = given
        found, _ = marginals(chain, said, block)
        return Factors(found.mean[at], found.cov[at])

    return lax.map(one, (chains, all_sites, place))
