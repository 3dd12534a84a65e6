"""Filtering and smoothing by triangular factors of the covariances: twice the digits, for single precision.

Forward a Kalman filter in square-root form; backward an information filter in square-root form, ``J = Z Z^T`` and eta
being what the future says of a state; their product is the smoothed belief. Nothing is subtracted from a covariance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..typing import Array
from .filtering import Belief, Steps, in_blocks, mm, mv, t


class Past(NamedTuple):
    """A Gaussian with covariance ``L L^T``."""

    mean: Array
    L: Array


class Future(NamedTuple):
    """``-x^T Z Z^T x / 2 + eta^T x``: what later observations say of a state."""

    eta: Array
    Z: Array


class Element(NamedTuple):
    """What a block does: from a start x its end has mean ``G x + mean``, factor L, and it says a `Future` of x."""

    end: Past
    G: Array
    said: Future


def tria(M: Array) -> Array:
    """Return a lower triangular L with ``L L^T = M M^T``, its diagonal not negative."""
    R = jnp.linalg.qr(t(M), mode="r")
    sign = jnp.where(jnp.diagonal(R, axis1=-2, axis2=-1) < 0, -1, 1).astype(M.dtype)
    L = t(R * sign[..., :, None])
    missing = L.shape[-2] - L.shape[-1]
    return L if missing <= 0 else jnp.pad(L, [(0, 0)] * (L.ndim - 1) + [(0, missing)])


def half_solve(L: Array, x: Array, *, transpose: bool = False) -> Array:
    """Return ``L^-1 x`` or ``L^-T x`` for a lower triangular L."""
    return jax.scipy.linalg.solve_triangular(L, x, lower=True, trans=int(transpose))


def observe(ahead: Past, s: Steps):
    """Return the belief after an observation, ``H' S^-T/2``, the whitened innovation, and S's factor."""
    p = s.H.shape[-2]
    top = jnp.concatenate([s.R, mm(s.H, ahead.L)], -1)
    below = jnp.concatenate([jnp.zeros((*ahead.L.shape[:-1], p), s.R.dtype), ahead.L], -1)
    joint = tria(jnp.concatenate([top, below], -2))
    S, gain, L = joint[..., :p, :p], joint[..., p:, :p], joint[..., p:, p:]
    e = half_solve(S, (s.y - mv(s.H, ahead.mean))[..., None])
    seen = t(half_solve(S, s.H))
    return Past(ahead.mean + mm(gain, e)[..., 0], L), seen, e[..., 0], S, gain


def predict(now: Past, s: Steps) -> Past:
    """Return the belief after a transition."""
    return Past(mv(s.A, now.mean) + s.b, tria(jnp.concatenate([mm(s.A, now.L), s.Q], -1)))


def advance(now: Past, s: Steps):
    """Return the belief one step later, and the step's log density and smallest pivot."""
    after, _, e, S, _ = observe(predict(now, s), s)
    pivots = jnp.abs(jnp.diagonal(S, axis1=-2, axis2=-1))
    return after, (after, -0.5 * jnp.sum(e**2, -1) - jnp.sum(jnp.log(pivots), -1), jnp.min(pivots, -1))


def summarise(carry: Element, s: Steps):
    """Append a step to a block."""
    after, seen, e, S, gain = observe(predict(carry.end, s), s)
    P = mm(s.A, carry.G)
    F = P - mm(gain, half_solve(S, mm(s.H, P)))
    back = mm(t(P), seen)
    said = Future(carry.said.eta + mv(back, e), tria(jnp.concatenate([carry.said.Z, back], -1)))
    return Element(after, F, said), None


def combine(past: Past, future: Future) -> Past:
    """Return the belief that both say: ``L (I + L' J L)^-1 L'`` is its covariance."""
    W = mm(t(past.L), future.Z)
    eye = jnp.eye(W.shape[-1], dtype=W.dtype)
    root = tria(jnp.concatenate([jnp.broadcast_to(eye, W.shape), W], -1))
    L = mm(past.L, half_solve(root, jnp.broadcast_to(eye, W.shape), transpose=True))
    news = future.eta - mv(future.Z, mv(t(future.Z), past.mean))
    return Past(past.mean + mv(L, mv(t(L), news)), L)


def through(start: Past, block: Element) -> Past:
    """Return the belief at a block's end from the one before it."""
    told = combine(start, block.said)
    return Past(mv(block.G, told.mean) + block.end.mean, tria(jnp.concatenate([mm(block.G, told.L), block.end.L], -1)))


def back_through(later: Future, A: Array, b: Array, L: Array) -> Future:
    """Return what is said of x when `later` is said of ``A x + b + q``, q of covariance ``L L^T``."""
    W = mm(t(later.Z), L)
    root = tria(jnp.concatenate([jnp.broadcast_to(jnp.eye(W.shape[-1], dtype=W.dtype), W.shape), W], -1))
    Z = t(half_solve(root, t(later.Z)))
    at_b = later.eta - mv(later.Z, mv(t(later.Z), b))
    eta = at_b - mv(Z, half_solve(root, mv(W, mv(t(L), at_b))[..., None])[..., 0])
    return Future(mv(t(A), eta), mm(t(A), Z))


def recede(after: Future, s: Steps):
    """Return what is said of the state before a step."""
    seen = half_solve(s.R, jnp.concatenate([s.H, s.y[..., None]], -1))
    back = t(seen[..., :-1])
    here = Future(after.eta + mv(back, seen[..., -1]), tria(jnp.concatenate([after.Z, back], -1)))
    return back_through(here, s.A, s.b, s.Q), after


class Smoothed(NamedTuple):
    """Beliefs after each observation and given all, log densities of steps and the smallest pivots."""

    after: Belief
    smoothed: Belief
    log_density: Array
    pivot: Array


def smooth_factors(steps: Steps, block: int, *, only_filter: bool = False) -> Smoothed:
    """Filter and smooth; Q and R of `steps` are lower triangular factors. `block` as in `filter_steps`."""
    T, n = steps.b.shape
    dtype = steps.b.dtype
    start, none = (
        Past(jnp.zeros(n, dtype), jnp.zeros((n, n), dtype)),
        Future(jnp.zeros(n, dtype), jnp.zeros((n, n), dtype)),
    )

    def forward(start, s):
        return lax.scan(advance, start, s)[1]

    def backward(end, s):
        return lax.scan(recede, end, s, reverse=True)[1]

    if not block:
        past, log_density, pivot = forward(start, steps)
        future = None if only_filter else backward(none, steps)
    else:
        cut = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), in_blocks(steps, block))
        lanes = cut.b.shape[1]
        many = jax.tree.map(lambda x: jnp.zeros((lanes, *x.shape), dtype), (start, none))
        eye = jnp.broadcast_to(jnp.eye(n, dtype=dtype), (lanes, n, n))
        whole = lax.scan(summarise, Element(many[0], eye, many[1]), cut)[0]
        starts = lax.scan(lambda c, b: (through(c, b), c), start, whole)[1]

        def flat(x):
            return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:T]

        past, log_density, pivot = jax.tree.map(flat, forward(starts, cut))
        future = None
        if not only_filter:

            def across(later, b):
                before = back_through(later, b.G, b.end.mean, b.end.L)
                Z = tria(jnp.concatenate([b.said.Z, before.Z], -1))
                return Future(b.said.eta + before.eta, Z), later

            ends = lax.scan(across, none, whole, reverse=True)[1]
            future = jax.tree.map(flat, backward(ends, cut))
    both = past if future is None else combine(past, future)
    after, smoothed = (Belief(x.mean, mm(x.L, t(x.L))) for x in (past, both))
    return Smoothed(after, smoothed, log_density, pivot)
