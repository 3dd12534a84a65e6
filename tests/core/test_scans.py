"""Linear recurrences against NumPy's loop, one route against another, and where they must not lie."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from solvers.core.scans import METHODS, affine_scan, diagonal_scan

from ..conftest import FLOAT, X64, needs_x64

T, N, BLOCK = 13, 3, 4
TOL = 1e-12 if X64 else 2e-5
COMPLEX = np.dtype("complex128" if X64 else "complex64")
SCANS = {"diagonal": diagonal_scan, "affine": affine_scan}


def terms(rng, kind, dtype=FLOAT):
    a = rng.uniform(-1, 1, (T, N) if kind == "diagonal" else (T, N, N))
    b, start = rng.standard_normal((T, N)), rng.standard_normal(N)
    if dtype == COMPLEX:
        a, b, start = (x * np.exp(2j * np.pi * rng.random(x.shape)) for x in (a, b, start))
    return tuple(jnp.asarray(x, dtype) for x in (a, b, start))


def loop(a, b, start, resets=None, reverse=False):
    """The definition, in NumPy at double precision."""
    wide = np.complex128 if np.iscomplexobj(b) else np.float64
    a, b, h = (np.asarray(x, wide) for x in (a, b, start))
    out = np.zeros_like(b)
    for t in range(len(b))[:: -1 if reverse else 1]:
        h = np.zeros_like(h) if resets is not None and resets[t] else h
        h = (a[t] * h if a.ndim == b.ndim else a[t] @ h) + b[t]
        out[t] = h
    return out


@pytest.mark.parametrize("dtype", [FLOAT, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SCANS)
def test_states_are_those_of_the_loop(rng, kind, method, reverse, dtype):
    a, b, start = terms(rng, kind, dtype)
    resets = np.arange(T) % 5 == 3
    got = SCANS[kind](a, b, start=start, resets=resets, method=method, block=BLOCK, reverse=reverse)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, loop(a, b, start, resets, reverse), rtol=TOL, atol=TOL)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SCANS)
def test_a_stream_in_two_pieces_is_the_whole(rng, kind, method):
    a, b, start = terms(rng, kind)
    scan = partial(SCANS[kind], method=method, block=BLOCK)
    first = scan(a[:6], b[:6], start=start)
    np.testing.assert_allclose(scan(a[6:], b[6:], start=first[-1]), loop(a, b, start)[6:], rtol=TOL, atol=TOL)


@pytest.mark.parametrize("block", [1, 13, 100])
@pytest.mark.parametrize("kind", SCANS)
def test_constant_coefficients_and_any_block(rng, kind, block):
    a, b, start = terms(rng, kind)
    got = SCANS[kind](a[0], b, start=start, method="blocked", block=block)
    np.testing.assert_allclose(got, loop(jnp.broadcast_to(a[0], a.shape), b, start), rtol=TOL, atol=TOL)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SCANS)
def test_one_step_and_none(rng, kind, method):
    a, b, start = terms(rng, kind)
    one = SCANS[kind](a[:1], b[:1], start=start, method=method)
    np.testing.assert_allclose(one, loop(a[:1], b[:1], start), rtol=TOL, atol=TOL)
    assert SCANS[kind](a[:0], b[:0], start=start, method=method).shape == (0, N)


@needs_x64
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.long
def test_derivatives_to_second_order(rng, kind, method):
    a, b, start = terms(rng, kind)

    @jax.jit
    def observe(a, b, start):
        return jnp.sum(jnp.sin(SCANS[kind](a[:5], b[:5], start=start, method=method, block=2)))

    check_grads(observe, (a, b, start), order=2, modes=("fwd", "rev"), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_lane_leaves_its_neighbours_alone(rng, method):
    a, b, start = terms(rng, "diagonal")
    scan = jax.jit(partial(diagonal_scan, method=method, block=BLOCK))
    got = scan(a, b.at[2, 1].set(jnp.nan), start=start)
    clean = scan(a, b, start=start)
    np.testing.assert_array_equal(got[:, [0, 2]], clean[:, [0, 2]])
    np.testing.assert_array_equal(np.isnan(got[:, 1]), np.arange(T) >= 2)


@pytest.mark.parametrize("method", METHODS)
def test_products_that_underflow_do_no_harm_and_overflow_is_never_a_finite_lie(rng, method):
    _, b, start = terms(rng, "diagonal")
    huge = float(jnp.finfo(FLOAT).max) ** 0.6
    small = jnp.full((T, N), 1 / huge, FLOAT)
    scan = partial(diagonal_scan, method=method, block=BLOCK)
    np.testing.assert_allclose(scan(small, b, start=start), loop(small, b, start), rtol=TOL, atol=0)
    large = scan(1 / small, b, start=start)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.abs(loop(1 / small, b, start)) > float(jnp.finfo(FLOAT).max)
        assert not np.isfinite(large)[expected | ~np.isfinite(loop(1 / small, b, start))].any()


def test_bad_input_raises_and_names_the_argument(rng):
    a, b, start = terms(rng, "diagonal")
    for match, call in {
        "`method` must be one of": lambda: diagonal_scan(a, b, method="parallel"),
        "`a` must be .* got shape": lambda: diagonal_scan(a[:4], b),
        "`A` must be": lambda: affine_scan(a, b),
        "`block` must be": lambda: diagonal_scan(a, b, method="blocked", block=0),
        "`start` must be": lambda: diagonal_scan(a, b, start=start[:2]),
        "`resets` must be": lambda: diagonal_scan(a, b, resets=np.zeros(T)),
        "`b` must be a real or complex": lambda: diagonal_scan(a, jnp.ones((T, N), int)),
        "of the dtype of `b`": lambda: diagonal_scan(a, b.astype(COMPLEX)),
    }.items():
        with pytest.raises((ValueError, TypeError), match=match):
            call()
