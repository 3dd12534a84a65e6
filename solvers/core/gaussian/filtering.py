"""Filtering and smoothing of linear Gaussian models in covariance form, sequential or in blocks side by side.

Durbin and Koopman, 2012, 4.4, of steps ``x_t = A x_(t-1) + b + q, y = H x + r`` with belief (m, P), v and S the
innovation and its covariance, K the gain:

(1) ``m <- A m + b,  P <- A P A' + Q``
(2) ``v = y - H m,  S = H P H' + R,  log density = -v'S^-1 v / 2 - log det(S) / 2``, less a constant
(3) ``m <- m + P H'S^-1 v,  P <- P - P H'S^-1 H P``
(4) ``F = I - K H,  u = H'S^-1 v,  W = H'S^-1 H``
(5) ``r <- u + F'r,  N <- W + F'N F``, then ``r <- A'r,  N <- A'N A``, backwards
(6) ``m + P r,  P - P N P``, smoothed
(7) ``(I + P N)^-1 (m + P r)``, what a start is once a block has said r and N of it; then through the block

Blocks are after Sarkka and Garcia-Fernandez, IEEE TAC 2021, who solve a system in every combination, not one a block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..precision import HIGHEST
from ..typing import Array


class Steps(NamedTuple):
    """``x_t = A_t x_(t-1) + b_t + q_t`` and what was seen of ``H_t x_t``, one entry a step.

    The first step is the prior: ``A_0 = 0``, b its mean and Q its covariance.

    Attributes
    ----------
    A, b, Q : [Array, "T n n"], [Array, "T n"], [Array, "T n n"]
        Transition, drift and covariance of the noise.
    H : [Array, "T p n"]
        Rows of what is not seen are zero.
    y, R : [Array, "T p"], [Array, "T p p"]
        Observations and the covariance of their noise; or, where `information`, ``R^-1 y`` and ``R^-1``, which may be
        singular.
    """

    A: Array
    b: Array
    Q: Array
    H: Array
    y: Array
    R: Array


class Belief(NamedTuple):
    """A Gaussian: mean and covariance, of any leading axes."""

    mean: Array
    cov: Array


class Adjoint(NamedTuple):
    """What the future says of a state: the smoothed one is ``mean + cov r``, of covariance ``cov - cov N cov``."""

    r: Array
    N: Array


class Summary(NamedTuple):
    """What a block does: from a start x its end has mean ``G x + mean`` and covariance cov; it says ``said`` of x."""

    end: Belief
    G: Array
    said: Adjoint


class Update(NamedTuple):
    """An observation's part of one step: ``F = I - K H``, ``u = H' S^-1 v``, ``W = H' S^-1 H``; v, S the innovation."""

    F: Array
    u: Array
    W: Array
    log_density: Array
    definite: Array


def mm(x, y):
    """Return ``x @ y`` of small matrices, as products and sums that fuse with what is around them."""
    if max(x.shape[-2:] + y.shape[-1:]) <= SMALL:
        return jnp.sum(x[..., :, :, None] * y[..., None, :, :], -2)
    return jnp.matmul(x, y, precision=HIGHEST)


def mv(A, x):
    """Return ``A @ x`` of a small matrix and a vector."""
    return mm(A, x[..., None])[..., 0]


def t(A):
    """Return the transpose of matrices in the last two axes."""
    return jnp.swapaxes(A, -1, -2)


SMALL = 4
MANY = 512
"""From so many blocks on, groups of them are summarised too."""


def predict(belief: Belief, s: Steps) -> Belief:
    """Return the belief after a transition."""
    return Belief(mv(s.A, belief.mean) + s.b, mm(mm(s.A, belief.cov), t(s.A)) + s.Q)  # (1)


def gains(ahead: Belief, s: Steps, information: bool):
    """Return ``H P``, ``S^-1``, ``S^-1 v`` and what the density needs, for the belief before an observation."""
    HP = mm(s.H, ahead.cov)
    V, seen = mm(HP, t(s.H)), mv(s.H, ahead.mean)
    if information:
        # S^-1 = (I + R^-1 V)^-1 R^-1 where R^-1 may be singular
        eye = jnp.broadcast_to(jnp.eye(V.shape[-1], dtype=V.dtype), V.shape)
        right = jnp.concatenate([s.R, (s.y - mv(s.R, seen))[..., None]], -1)
        solved = jnp.linalg.solve(eye + mm(s.R, V), right)
        return HP, solved[..., :-1], solved[..., -1], jnp.zeros_like(V[..., 0, 0]), V[..., 0, 0]
    v, S = s.y - seen, V + s.R  # (2)
    if S.shape[-1] == 1:
        inverse = 1 / S
        half_log, pivot = 0.5 * jnp.log(S[..., 0, 0]), S[..., 0, 0]
    else:
        L = jnp.linalg.cholesky(S)
        eye = jnp.broadcast_to(jnp.eye(S.shape[-1], dtype=S.dtype), S.shape)
        root = jax.scipy.linalg.solve_triangular(L, eye, lower=True)
        inverse = mm(t(root), root)
        pivots = jnp.diagonal(L, axis1=-2, axis2=-1)
        half_log, pivot = jnp.sum(jnp.log(pivots), -1), jnp.min(pivots, -1)
    w = mv(inverse, v)
    return HP, inverse, w, -0.5 * jnp.sum(v * w, -1) - half_log, pivot


def condition(ahead: Belief, s: Steps, information: bool) -> Belief:
    """Return the belief after the observation."""
    HP, inverse, w, _, _ = gains(ahead, s, information)
    cov = ahead.cov - mm(t(HP), mm(inverse, HP))  # (3)
    return Belief(ahead.mean + mv(t(HP), w), 0.5 * (cov + t(cov)))


def update(ahead: Belief, s: Steps, information: bool) -> Update:
    """Return what a step's observation does, from the belief before it."""
    HP, inverse, w, log_density, pivot = gains(ahead, s, information)
    HS = mm(t(s.H), inverse)
    eye = jnp.eye(s.A.shape[-1], dtype=s.A.dtype)
    # (4)
    return Update(
        eye.reshape((1,) * (HS.ndim - 2) + eye.shape) - t(mm(HS, HP)), mv(t(s.H), w), mm(HS, s.H), log_density, pivot
    )


def advance(belief: Belief, s: Steps, information: bool) -> Belief:
    """Return the belief one step later."""
    return condition(predict(belief, s), s, information)


def summarise(carry: Summary, s: Steps, information: bool) -> Summary:
    """Append a step to a block."""
    ahead = predict(carry.end, s)
    up = update(ahead, s, information)
    P = mm(s.A, carry.G)
    said = Adjoint(carry.said.r + mv(t(P), up.u), carry.said.N + mm(mm(t(P), up.W), P))
    return Summary(condition(ahead, s, information), mm(up.F, P), said)


def through(start: Belief, block: Summary) -> Belief:
    """Return the belief at a block's end from the one before it."""
    n = start.mean.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(n, dtype=start.mean.dtype), start.cov.shape)
    both = jnp.concatenate([start.cov, (start.mean + mv(start.cov, block.said.r))[..., None]], -1)
    solved = jnp.linalg.solve(eye + mm(start.cov, block.said.N), both)  # (7)
    cov = mm(mm(block.G, solved[..., :-1]), t(block.G)) + block.end.cov
    return Belief(mv(block.G, solved[..., -1]) + block.end.mean, 0.5 * (cov + t(cov)))


def join(one: Summary, two: Summary) -> Summary:
    """Return what two blocks do, the second after the first."""
    n = one.G.shape[-1]
    C, N = one.end.cov, two.said.N
    eye = jnp.broadcast_to(jnp.eye(n, dtype=C.dtype), C.shape)
    told = (one.end.mean + mv(C, two.said.r))[..., None]
    # W = (I + C N)^-1 on what the first block leaves; its transpose on what the second says
    solved = jnp.linalg.solve(eye + mm(C, N), jnp.concatenate([C, told, one.G], -1))
    cov, mean, G = solved[..., :n], solved[..., n], solved[..., n + 1 :]
    end = Belief(mv(two.G, mean) + two.end.mean, mm(mm(two.G, cov), t(two.G)) + two.end.cov)
    NWG = mm(N, G)
    r = one.said.r + mv(t(G), two.said.r - mv(N, one.end.mean))
    both = one.said.N + mm(t(one.G), NWG)
    symmetric = Belief(end.mean, 0.5 * (end.cov + t(end.cov)))
    return Summary(symmetric, mm(two.G, G), Adjoint(r, 0.5 * (both + t(both))))


def back_across(after: Adjoint, block: Summary) -> Adjoint:
    """Return the adjoint before a block, met on the filter's way, from the one after it."""
    return Adjoint(block.said.r + mv(t(block.G), after.r), block.said.N + mm(mm(t(block.G), after.N), block.G))


def back_join(one: Summary, two: Summary) -> Summary:
    """Return what two blocks on the filter's way do to an adjoint, the second after the first."""
    said = back_across(two.said, one)
    return Summary(two.end, mm(two.G, one.G), said)


def entries_of(blocks: Summary, first: Any, step: Any, pair: Any, *, reverse: bool = False) -> Any:
    """Return what comes into each block, `first` into the first one (the last, in reverse), in two levels where many.

    ``step(entry, block)`` goes through a block, ``pair(one, two)`` makes one of two.
    """
    lanes = blocks.G.shape[0]
    if lanes < MANY:
        return lax.scan(lambda c, b: (step(c, b), c), first, blocks, reverse=reverse)[1]
    group = round((lanes / 2) ** 0.5)
    extra = -lanes % group

    def cut(x, still):
        x = jnp.concatenate([x, jnp.broadcast_to(still, (extra, *x.shape[1:]))])
        return jnp.swapaxes(x.reshape(-1, group, *x.shape[1:]), 0, 1)

    nothing_done = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), blocks)
    eye = jnp.eye(blocks.G.shape[-1], dtype=blocks.G.dtype)
    along = jax.tree.map(cut, blocks, nothing_done._replace(G=eye))
    start = jax.tree.map(lambda x: x[0], along)
    rest = jax.tree.map(lambda x: x[1:], along)
    groups = lax.scan(lambda c, b: (pair(c, b), None), start, rest)[0]
    into = lax.scan(lambda c, b: (step(c, b), c), first, groups, reverse=reverse)[1]
    inside = lax.scan(lambda c, b: (step(c, b), c), into, along, reverse=reverse)[1]
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:lanes], inside)


def step_back(after: Adjoint, s: tuple[Array, Update]) -> tuple[Adjoint, Adjoint]:
    """Return the adjoint before a transition, and the one after it and before its observation."""
    A, up = s
    N = up.W + mm(mm(t(up.F), after.N), up.F)  # (5)
    here = Adjoint(up.u + mv(t(up.F), after.r), 0.5 * (N + t(N)))
    return Adjoint(mv(t(A), here.r), mm(mm(t(A), here.N), A)), here  # (5)


def nothing(like: Belief) -> Adjoint:
    """Return the adjoint of no future."""
    return Adjoint(jnp.zeros_like(like.mean), jnp.zeros_like(like.cov))


class Filtered(NamedTuple):
    """Beliefs before and after each observation, what each step did, and blocks where there were some."""

    ahead: Belief
    after: Belief
    steps: Update
    blocks: Summary | None


def filter_steps(steps: Steps, block: int, information: bool = False) -> Filtered:
    """Return beliefs after each step; `block` is the length of blocks side by side, or 0 for one step after another."""
    T, n = steps.b.shape
    zero = Belief(jnp.zeros(n, steps.b.dtype), jnp.zeros((n, n), steps.b.dtype))

    def forward(start, s):
        return lax.scan(lambda c, s: ((new := advance(c, s, information)), new), start, s)[1]

    if not block:
        after, blocks = forward(zero, steps), None
    else:
        cut = in_blocks(steps, block)
        lanes = cut.b.shape[0]
        many = jax.tree.map(lambda x: jnp.zeros((lanes, *x.shape), x.dtype), zero)
        eye = jnp.broadcast_to(jnp.eye(n, dtype=steps.b.dtype), (lanes, n, n))

        def summaries(start):
            first = Summary(start, eye, nothing(start))
            along = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), cut)
            return lax.scan(lambda c, s: ((new := summarise(c, s, information)), new.end), first, along)

        whole = summaries(many)[0]
        ends = entries_of(whole, zero, through, join)
        blocks, inside = summaries(ends)
        after = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:T], inside)
    before = jax.tree.map(lambda z, x: jnp.concatenate([z[None], x[:-1]]), zero, after)
    ahead = predict(before, steps)
    return Filtered(ahead, after, update(ahead, steps, information), blocks)


def smooth_steps(steps: Steps, found: Filtered, block: int) -> tuple[Belief, Adjoint]:
    """Return smoothed beliefs, and adjoints before each observation."""
    T = steps.b.shape[0]
    zero = nothing(Belief(steps.b[0], steps.Q[0]))

    def backward(end, s):
        return lax.scan(step_back, end, s, reverse=True)[1]

    blocks = found.blocks
    if blocks is None:
        here = backward(zero, (steps.A, found.steps))
    else:
        ends = entries_of(blocks, zero, back_across, back_join, reverse=True)
        cut = in_blocks((steps.A, found.steps), block)
        along = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), cut)
        inside = backward(ends, along)
        here = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:T], inside)
    A = steps.A[1:]
    r = jnp.concatenate([mv(t(A), here.r[1:]), zero.r[None]])
    N = jnp.concatenate([mm(mm(t(A), here.N[1:]), A), zero.N[None]])
    m, P = found.after
    cov = P - mm(mm(P, N), P)  # (6)
    return Belief(m + mv(P, r), 0.5 * (cov + t(cov))), here


def in_blocks(steps: Any, block: int) -> Any:
    """Cut the time axis into blocks, the last one filled with steps that change nothing."""
    T = jax.tree.leaves(steps)[0].shape[0]
    extra = -T % block

    def fill(x, still):
        tail = jnp.broadcast_to(still, (extra, *x.shape[1:])).astype(x.dtype)
        return jnp.concatenate([x, tail]).reshape(-1, block, *x.shape[1:])

    def eye(x):
        return jnp.eye(x.shape[-1], dtype=x.dtype)

    if isinstance(steps, Steps):
        zeros = [fill(x, jnp.zeros(x.shape[1:], x.dtype)) for x in steps]
        return Steps(*zeros)._replace(A=fill(steps.A, eye(steps.A)), R=fill(steps.R, eye(steps.R)))
    A, up = steps
    zeros = [fill(x, jnp.zeros(x.shape[1:], x.dtype)) for x in up]
    return fill(A, eye(A)), Update(*zeros)._replace(F=fill(up.F, eye(up.F)))


def default_block(T: int) -> int:
    """Return the length of blocks that makes few dependent steps: ``3 b + 2 T / b``, or what groups of them take."""
    block = max(2, round((2 * T / 3) ** 0.5))
    return block if MANY * block > T else max(2, round((8 * T / 9) ** (1 / 3)))
