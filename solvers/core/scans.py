"""Linear recurrences in time: one after the other, by an associative scan, or in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from .checks import choice, fail
from .precision import matmul
from .typing import Array, Bool, Float

METHODS = ("sequential", "associative", "blocked")


class _Algebra(NamedTuple):
    """What a recurrence does with its coefficients: on a state, one after another, and the one that does nothing."""

    act: Callable
    compose: Callable
    identity: Callable


_DIAGONAL = _Algebra(lambda a, h: a * h, lambda later, earlier: later * earlier, jnp.ones_like)
_DENSE = _Algebra(
    lambda A, h: matmul(A, h[..., None])[..., 0],
    matmul,
    lambda A: jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=A.dtype), A.shape),
)


def diagonal_scan(
    a: Float[Array, "T *n"],
    b: Float[Array, "T *n"],
    *,
    start: Float[Array, "*n"] | None = None,
    resets: Bool[Array, " T"] | None = None,
    method: str = "sequential",
    block: int = 64,
    reverse: bool = False,
) -> Float[Array, "T *n"]:
    """Return all states of ``h_t = a_t h_(t-1) + b_t``, entry by entry.

    The last state returned is the `start` of the next piece of a stream (the first one, with `reverse`).

    Parameters
    ----------
    a : Float or Complex[Array, "T *n"] or [Array, "*n"]
        Decays, one a step or the same for all; differentiable.
    b : Float or Complex[Array, "T *n"]
        Inputs, of the dtype of `a`; time is the first axis; differentiable.
    start : [Array, "*n"] or None
        The state before the first step; zero by default; differentiable.
    resets : Bool[Array, "T"] or None
        Steps before which the state is set to zero, so that ``h_t = b_t``.
    method : {"sequential", "associative", "blocked"}
        Static. Sequential: T dependent steps, the fewest operations. Associative: about ``2 log2(T)`` dependent steps,
        for accelerators. Blocked: ``2 block + T / block`` dependent steps, blocks side by side.
    block : int
        Static length of a block.
    reverse : bool
        Static; ``h_t = a_t h_(t+1) + b_t`` from the last step down, `start` being the state after it.

    Returns
    -------
    Float or Complex[Array, "T *n"]
        The states.

    Raises
    ------
    ValueError, TypeError
        For shapes, dtypes or options that do not fit.

    Notes
    -----
    The associative and blocked routes multiply decays of many steps. Where such a product leaves the dtype's range
    upwards the states are infinite or NaN there, though those of the sequential route may be finite.
    Memory is O(T n) for all. Batches by ``jax.vmap``, or as further axes.
    """
    return _scan(
        "diagonal_scan", _DIAGONAL, _fitting("diagonal_scan", a, b, 0), start, resets, (method, block, reverse)
    )


def affine_scan(
    A: Float[Array, "T n n"],
    b: Float[Array, "T n"],
    *,
    start: Float[Array, " n"] | None = None,
    resets: Bool[Array, " T"] | None = None,
    method: str = "sequential",
    block: int = 64,
    reverse: bool = False,
) -> Float[Array, "T n"]:
    """Return all states of ``h_t = A_t h_(t-1) + b_t`` with dense matrices.

    Parameters
    ----------
    A : Float or Complex[Array, "T n n"] or [Array, "n n"]
        Matrices, one a step or the same for all; differentiable.
    b : Float or Complex[Array, "T n"]
        Inputs, of the dtype of `A`; differentiable.
    start, resets, method, block, reverse
        As in `diagonal_scan`.

    Returns
    -------
    Float or Complex[Array, "T n"]
        The states.

    Raises
    ------
    ValueError, TypeError
        For shapes, dtypes or options that do not fit.

    Notes
    -----
    The associative and blocked routes multiply matrices, at n times the work of the sequential one, and share the
    limits of `diagonal_scan`. Memory O(T n^2).
    """
    return _scan("affine_scan", _DENSE, _fitting("affine_scan", A, b, 1), start, resets, (method, block, reverse))


def _fitting(name: str, a, b, extra: int):
    """Return coefficients, one a step, and inputs, or raise."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    first = "A" if extra else "a"
    if b.ndim < 1 + extra or (extra and b.ndim != 2):
        fail(name, "b", "an array (T, n)" if extra else "an array whose first axis is time", f"shape {b.shape}")
    if not jnp.issubdtype(b.dtype, jnp.inexact):
        fail(name, "b", "a real or complex floating array", f"dtype {b.dtype}", TypeError)
    if a.dtype != b.dtype:
        fail(name, first, f"of the dtype of `b`, {b.dtype}", a.dtype, TypeError)
    one = b.shape[1:] * (1 + extra)
    if a.shape not in (one, b.shape[:1] + one):
        fail(name, first, f"{one} or {b.shape[:1] + one}", f"shape {a.shape}")
    return jnp.broadcast_to(a, b.shape[:1] + one), b


def _scan(name: str, algebra: _Algebra, terms, start, resets, how):
    a, b = terms
    method, block, reverse = how
    choice(name, "method", method, METHODS)
    if not isinstance(block, int) or block < 1:
        fail(name, "block", "a positive integer", block)
    start = jnp.zeros(b.shape[1:], b.dtype) if start is None else jnp.asarray(start)
    if start.shape != b.shape[1:]:
        fail(name, "start", f"{b.shape[1:]}", f"shape {start.shape}")
    if start.dtype != b.dtype:
        fail(name, "start", f"of the dtype of `b`, {b.dtype}", start.dtype, TypeError)
    if resets is not None:
        resets = jnp.asarray(resets)
        if resets.shape != b.shape[:1] or resets.dtype != jnp.bool_:
            fail(name, "resets", f"booleans {b.shape[:1]}", f"{resets.dtype} {resets.shape}")
        a = jnp.where(resets.reshape((-1,) + (1,) * (a.ndim - 1)), jnp.zeros_like(a), a)
    if not b.shape[0]:
        return b
    if reverse:
        a, b = a[::-1], b[::-1]
    if method == "sequential":
        h = _sequential(algebra, a, b, start)
    elif method == "associative":
        h = _associative(algebra, a, b, start)
    else:
        h = _blocked(algebra, a, b, start, block)
    return h[::-1] if reverse else h


def _sequential(algebra: _Algebra, a, b, start):
    def step(h, term):
        h = algebra.act(term[0], h) + term[1]
        return h, h

    return lax.scan(step, start, (a, b))[1]


def _associative(algebra: _Algebra, a, b, start):
    def combine(earlier, later):
        return algebra.compose(later[0], earlier[0]), algebra.act(later[0], earlier[1]) + later[1]

    b = b.at[0].add(algebra.act(a[0], start))
    return lax.associative_scan(combine, (a, b))[1]


def _blocked(algebra: _Algebra, a, b, start, block: int):
    steps = b.shape[0]
    padding = -steps % block
    a = jnp.concatenate([a, algebra.identity(jnp.broadcast_to(a[:1], (padding, *a.shape[1:])))])
    b = jnp.concatenate([b, jnp.zeros((padding, *b.shape[1:]), b.dtype)])
    # time within a block first, so that one step of the scan advances all blocks
    a, b = (jnp.swapaxes(x.reshape(-1, block, *x.shape[1:]), 0, 1) for x in (a, b))

    def summarise(carry, term):
        product, h = carry
        return (algebra.compose(term[0], product), algebra.act(term[0], h) + term[1]), None

    (product, end), _ = lax.scan(summarise, (algebra.identity(a[0]), jnp.zeros_like(b[0])), (a, b))
    ends = _sequential(algebra, product, end, start)
    starts = jnp.concatenate([start[None], ends[:-1]])
    h = _sequential(algebra, a, b, starts)
    return jnp.swapaxes(h, 0, 1).reshape(-1, *b.shape[2:])[:steps]
