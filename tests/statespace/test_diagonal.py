"""Diagonal layers against dense exponentials, the recurrence they sample, and each other."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.signal import cont2discrete

from solvers import DiagonalMIMO, DiagonalSSM
from solvers.statespace import diagonal, ptd, s4d_lin

from ..conftest import FLOAT, X64, needs_x64

TOL = 1e-12 if X64 else 2e-4
H, N, L = 3, 5, 70


@partial(jax.jit, static_argnames=("kind", "rule", "states", "channels"))
def siso(key, *, kind="s4d_inv", rule="zoh", states=N, channels=H):
    return DiagonalSSM.create(kind, channels=channels, states=states, key=key, rule=rule)


@partial(jax.jit, static_argnames="rule")
def mimo(key, *, rule="zoh"):
    return DiagonalMIMO.create(channels=H, states=N, key=key, rule=rule)


@partial(jax.jit, static_argnames="mode")
def apply(layer, u, resets=None, *, mode="fft"):
    return layer.apply(u, mode=mode, resets=resets)


@partial(jax.jit, static_argnames=("L", "block"))
def kernel(layer, *, L, block=None):
    return layer.kernel(L) if block is None else layer.kernel(L, block=block)


stream = jax.jit(lambda layer, state, u: layer.stream(state, u))
step = jax.jit(lambda layer, state, u: layer.step(state, u))


def real_form(poles, weights):
    """The real system of a pole and its conjugate, by blocks: A (2N, 2N), B (2N,), C (2N,)."""
    n = len(poles)
    A, B, C = np.zeros((2 * n, 2 * n)), np.zeros(2 * n), np.zeros(2 * n)
    for k, (p, w) in enumerate(zip(poles, weights, strict=True)):
        A[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[p.real, -p.imag], [p.imag, p.real]]
        B[2 * k] = 1.0
        C[2 * k : 2 * k + 2] = [2 * w.real, -2 * w.imag]
    return A, B, C


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_is_the_sampled_system_by_all_routes(rule):
    """SciPy's dense sampling of the real form, run as a recurrence in NumPy."""
    layer = siso(jax.random.key(3), rule=rule)
    u = np.random.default_rng(4).standard_normal((L, H))
    expected = np.empty((L, H))
    poles, weights = np.asarray(layer.poles), np.asarray(layer.weights) @ np.array([1, 1j])
    for h, step in enumerate(np.exp(np.asarray(layer.log_step))):
        A, B, C = real_form(poles[h], weights[h])
        a, b = (x.real for x in cont2discrete((A, B[:, None], C[None], 0.0), step, rule)[:2])
        if rule == "bilinear":  # SciPy's inputs meet the output at once through a D of its own; ours enter the state
            half = np.eye(2 * N) - step / 2 * A
            a, b = np.linalg.solve(half, np.eye(2 * N) + step / 2 * A), np.linalg.solve(half, step * B)[:, None]
        x = np.zeros(2 * N)
        for t in range(L):
            x = a @ x + b[:, 0] * u[t, h]
            expected[t, h] = C @ x + layer.skip[h] * u[t, h]
    u = jnp.asarray(u, FLOAT)
    for mode in ("fft", "scan", "step"):
        np.testing.assert_allclose(apply(layer, u, mode=mode), expected, rtol=TOL, atol=TOL)


def test_kernel_is_the_dense_exponential_for_any_block():
    layer = DiagonalSSM(s4d_lin(3)[None], np.array([1.0, 2 - 1j, 0.5j])[None], step=0.1)
    A, B, C = real_form(np.asarray(layer.poles)[0], [1.0, 2 - 1j, 0.5j])
    hold = np.linalg.solve(A, expm(0.1 * A) - np.eye(6)) @ B
    expected = [C @ expm(0.1 * k * A) @ hold for k in range(41)]
    for block in (None, 1, 7, 64):
        np.testing.assert_allclose(kernel(layer, L=41, block=block)[0], expected, rtol=TOL, atol=TOL)


def test_a_bilinear_pole_at_minus_two_over_the_step_forgets_at_once():
    layer = DiagonalSSM(np.array([-20.0 + 0j]), np.array([1.0]), step=0.1, rule="bilinear")
    K = kernel(layer, L=5)[0]
    np.testing.assert_allclose(K, [0.1, 0, 0, 0, 0], atol=1e-6)
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.sum(m.kernel(5))))(layer)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


def test_no_array_of_channels_states_and_length_exists(monkeypatch):
    layer = siso(jax.random.key(5), kind="s4d_lin", channels=4, states=8)
    L = 4096
    whole = kernel(layer, L=L)
    text = jax.make_jaxpr(lambda m: m.kernel(L))(layer)
    largest = max(v.aval.size for e in text.eqns for v in e.outvars)
    assert largest <= 4 * L + 4 * 16 * 64 * 2
    assert largest < 4 * 8 * L / 4
    # and where channels do not fit at once they go in groups, three and one here
    monkeypatch.setattr(diagonal, "ROOM", 3 * 8 * (64 + 64))
    np.testing.assert_allclose(jax.jit(lambda m: m.kernel(L))(layer), whole, rtol=TOL, atol=TOL)


@pytest.mark.parametrize("kind", ["siso", "mimo"])
def test_streams_in_pieces_and_forgets_at_resets(kind):
    key, u = jax.random.key(6), jax.random.normal(jax.random.key(7), (L, H))
    layer = siso(key, kind="s4d_legs") if kind == "siso" else mimo(key)
    state, first = stream(layer, layer.start(), u[:35])
    _, second = stream(layer, state, u[35:])
    np.testing.assert_allclose(jnp.concatenate([first, second]), apply(layer, u), rtol=TOL, atol=TOL)
    state, y = step(layer, layer.start(), u[0])
    np.testing.assert_allclose(y, first[0], rtol=TOL, atol=TOL)
    np.testing.assert_allclose(step(layer, state, u[1])[1], first[1], rtol=TOL, atol=TOL)
    resets = jnp.arange(L) == 35
    for mode in ("scan", "step"):
        after = apply(layer, u, resets, mode=mode)[35:]
        np.testing.assert_allclose(after, apply(layer, u[35:]), rtol=TOL, atol=TOL)
    with pytest.raises(ValueError, match="resets"):
        layer.apply(u, mode="fft", resets=resets)


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_mimo_kernel_is_the_impulse_response(rule):
    layer = mimo(jax.random.key(8), rule=rule)
    pulses = jnp.zeros((H, 9, H)).at[jnp.arange(H), 0, jnp.arange(H)].set(1.0)
    for mode in ("scan", "fft", "step"):
        answers = jax.vmap(lambda u: apply(layer, u, mode=mode))(pulses)
        K = kernel(layer, L=9).at[0].add(jnp.diag(layer.skip))
        np.testing.assert_allclose(jnp.moveaxis(answers, 0, 2), K, rtol=TOL, atol=TOL)


def test_the_transfer_function_is_the_kernel_s_sum_for_small_steps():
    """``h sum_l K(l h) e^(-s l h)`` goes to ``G(s) - D`` as h falls; here its discrete form, exactly."""
    layer = DiagonalSSM(
        s4d_lin(4), np.array([1.0, 0.3j, -0.2, 1 - 1j]), step=np.full(2, 1e-3), skip=np.array([0.5, 0.0])
    )
    s = 2.0 + 1.5j
    poles, w = s4d_lin(4), np.array([1.0, 0.3j, -0.2, 1 - 1j])
    expected = np.sum(w / (s - poles) + w.conj() / (s - poles.conj()))
    np.testing.assert_allclose(layer.transfer(s), [expected + 0.5, expected], rtol=10 * TOL)
    sampled = np.sum(np.asarray(kernel(layer, L=20_000)[0], float) * np.exp(-s * 1e-3 * np.arange(20_000)))
    np.testing.assert_allclose(sampled, expected, rtol=3e-3)


def test_perturbed_poles_need_no_pairs():
    """With all eigenvalues and no pairs the layer is the real part of the complex system: here HiPPO's first state."""
    poles, B, V = ptd(8, size=1e-3)
    layer = DiagonalSSM(poles, B * V[0], step=0.02, pairs=False)
    tail = np.exp(-0.02 * np.arange(200))  # (e^(At) B)_0 = e^-t
    hold = -np.expm1(-0.02)
    np.testing.assert_allclose(kernel(layer, L=200)[0], hold * tail, atol=2e-4)


@needs_x64
@pytest.mark.long
def test_single_precision_follows_double():
    double = siso(jax.random.key(9), kind="s4d_lin", channels=2, states=16)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), double)
    K, rough = np.asarray(kernel(double, L=2048)), np.asarray(kernel(single, L=2048), float)
    assert np.max(np.abs(rough - K)) <= 3e-5 * np.max(np.abs(K))
