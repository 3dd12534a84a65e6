"""Filtering and smoothing by triangular factors of the covariances: twice the digits, for single precision.

Forward a Kalman filter in square-root form; backward an information filter in square-root form, a least-squares problem
``|rhs - Z^T x|`` being what the future says of a state; both together are the smoothed belief. Nothing is subtracted
from a covariance, and right-hand sides turn along with their rows: never is ``Z rhs`` formed, of the size of one over
the noise, from which the past's mean would have to be subtracted.
"""

from __future__ import annotations

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
    """``-|rhs - Z^T x|^2 / 2``: what later observations say of a state; Z is square."""

    rhs: Array
    Z: Array


class Element(NamedTuple):
    """What a block does: from a start x its end has mean ``G x + mean``, factor L, and it says a `Future` of x."""

    end: Past
    G: Array
    said: Future


def tria(M: Array) -> Array:
    """Return a lower triangular L with ``L L^T = M M^T``, its diagonal not negative; columns taken in largest first."""
    order = jnp.argsort(-jnp.max(jnp.abs(M), -2), axis=-1)
    R = jnp.linalg.qr(t(jnp.take_along_axis(M, order[..., None, :], -1)), mode="r")
    sign = jnp.where(jnp.diagonal(R, axis1=-2, axis2=-1) < 0, -1, 1).astype(M.dtype)
    L = t(R * sign[..., :, None])
    missing = L.shape[-2] - L.shape[-1]
    return L if missing <= 0 else jnp.pad(L, [(0, 0)] * (L.ndim - 1) + [(0, missing)])


UNROLLED = 4
"""Up to so many columns are eliminated without a loop in the program."""


def eliminate(rows: Array, columns: int) -> tuple[Array, Array]:
    """Turn rows by reflections so that each of the first `columns` is zero below a row of its own; return their order.

    Row k of the result holds column ``order[k]``, rows beyond them none. Of the columns that are left the longest comes
    next, of its entries the largest leads: rows of sizes as different as data and prior keep their own digits (Cox and
    Higham, Stability of Householder QR factorization for weighted least squares problems, 1998).
    """

    def one(rows):
        count = rows.shape[0]
        at = jnp.arange(count, dtype=jnp.int32)

        def step(k, carry):
            rows, order, free = carry
            k = jnp.asarray(k, jnp.int32)
            live = at >= k
            below = jnp.where(live[:, None], rows[:, :columns], 0)
            size = jnp.max(jnp.abs(below), axis=0)
            column = jnp.argmax(jnp.where(free, size, -1)).astype(jnp.int32)
            lead = jnp.argmax(jnp.where(live, jnp.abs(rows[:, column]), -1)).astype(jnp.int32)
            rows = rows[jnp.where(at == k, lead, jnp.where(at == lead, k, at))]
            x = jnp.where(live, rows[:, column], 0)
            unit = size[column]
            x = x / jnp.where(unit > 0, unit, 1)
            norm = jnp.sqrt(jnp.sum(x**2))
            v = jnp.where(at == k, x + jnp.where(x[k] < 0, -norm, norm), x)
            square = jnp.sum(v**2)
            beta = jnp.where(square > 0, 2 / jnp.where(square > 0, square, 1), 0)
            rows = rows - (beta * v)[:, None] * jnp.sum(v[:, None] * rows, axis=0)[None, :]
            along = jnp.arange(rows.shape[1], dtype=jnp.int32)
            gone = (at > k)[:, None] & (along == column)[None, :]
            return jnp.where(gone, 0, rows), order.at[k].set(column), free & (along[:columns] != column)

        start = (rows, jnp.zeros(columns, jnp.int32), jnp.ones(columns, bool))
        rows, order, _ = lax.fori_loop(0, min(columns, count), step, start, unroll=columns <= UNROLLED or None)
        return rows, order

    for _ in range(rows.ndim - 2):
        one = jax.vmap(one)
    return one(rows)


def turned(*parts: Future) -> Future:
    """Return what several say together in as many rows as there are unknowns."""
    rows = jnp.concatenate([jnp.concatenate([t(f.Z), f.rhs[..., None]], -1) for f in parts], -2)
    n = rows.shape[-1] - 1
    if rows.shape[-2] > n:
        rows = eliminate(rows, n)[0][..., :n, :]
    return Future(rows[..., n], t(rows[..., :n]))


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
    return Element(after, F, turned(carry.said, Future(e, back))), None


def combine(past: Past, future: Future) -> Past:
    """Return the belief that both say: of ``x = mean + L s`` the rows ``s = 0`` and ``Z^T L s = rhs - Z^T mean``."""
    news = future.rhs - mv(t(future.Z), past.mean)
    n = past.L.shape[-1]
    rows, order = eliminate(beside(mm(t(future.Z), past.L), news[..., None]), n)
    R = jnp.take_along_axis(rows[..., :n, :n], order[..., None, :], -1)
    eye = jnp.broadcast_to(jnp.eye(n, dtype=R.dtype), past.L.shape)
    solved = jax.scipy.linalg.solve_triangular(R, jnp.concatenate([rows[..., :n, n:], eye], -1))
    both = mm(jnp.take_along_axis(past.L, order[..., None, :], -1), solved)
    return Past(past.mean + both[..., 0], both[..., 1:])


def beside(first: Array, rest: Array) -> Array:
    """Return rows ``[first, rest]`` and, for the unknowns of the first, rows of a unit prior."""
    eye = jnp.broadcast_to(jnp.eye(first.shape[-1], dtype=first.dtype), (*first.shape[:-2], *[first.shape[-1]] * 2))
    below = jnp.zeros((*first.shape[:-2], first.shape[-1], rest.shape[-1]), first.dtype)
    return jnp.concatenate([jnp.concatenate([first, rest], -1), jnp.concatenate([eye, below], -1)], -2)


def through(start: Past, block: Element) -> Past:
    """Return the belief at a block's end from the one before it."""
    told = combine(start, block.said)
    return Past(mv(block.G, told.mean) + block.end.mean, tria(jnp.concatenate([mm(block.G, told.L), block.end.L], -1)))


def back_through(later: Future, A: Array, b: Array, L: Array) -> Future:
    """Return what is said of x when `later` is said of ``A x + b + q``, q of covariance ``L L^T``."""
    n = L.shape[-1]
    rest = jnp.concatenate([mm(t(later.Z), A), (later.rhs - mv(t(later.Z), b))[..., None]], -1)
    rows = eliminate(beside(mm(t(later.Z), L), rest), n)[0][..., n:, n:]
    return Future(rows[..., -1], t(rows[..., :-1]))


def recede(after: Future, s: Steps):
    """Return what is said of the state before a step."""
    seen = half_solve(s.R, jnp.concatenate([s.H, s.y[..., None]], -1))
    here = turned(Future(seen[..., -1], t(seen[..., :-1])), after)
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
                return turned(b.said, back_through(later, b.G, b.end.mean, b.end.L)), later

            ends = lax.scan(across, none, whole, reverse=True)[1]
            future = jax.tree.map(flat, backward(ends, cut))
    both = past if future is None else combine(past, future)
    after, smoothed = (Belief(x.mean, mm(x.L, t(x.L))) for x in (past, both))
    return Smoothed(after, smoothed, log_density, pivot)
