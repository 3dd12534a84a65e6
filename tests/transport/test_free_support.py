"""Barycenters with points of their own: an oracle in NumPy, closed forms, symmetries, and attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Status, TransportStatus, stack_ragged

from ..compiled import free_support_barycenter
from ..conftest import FLOAT, X64, needs_x64

K, N, M = 2, 12, 8
EPSILON = 0.1


def clouds(rng):
    x = rng.standard_normal((K, N, 2)) * [1.0, 0.5] + 3 * np.arange(K)[:, None, None]
    a, b, shares = (0.5 + rng.random(shape) for shape in ((K, N), M, K))
    weights = (w / w.sum(-1, keepdims=True) for w in (a, b, shares))
    return (x, *weights, rng.standard_normal((M, 2)))


def solve(x, a, b, shares, init, epsilon=EPSILON, **settings):
    x, a, b, shares, init, epsilon = (jnp.asarray(z, FLOAT) for z in (x, a, b, shares, init, epsilon))
    settings = {"max_steps": jnp.asarray(1000), **settings}  # an array: one program for all
    return free_support_barycenter(x, a, b, epsilon=epsilon, shares=shares, init=init, **settings)


def entropic_map(x, a, y, b, epsilon):
    """Where the plan between two clouds sends y on average, by a few thousand sweeps in float64."""
    cost = ((x[:, None] - y[None]) ** 2).sum(2)
    g = np.zeros(len(b))
    soft = lambda z, axis: epsilon * np.logaddexp.reduce(z / epsilon, axis)  # noqa: E731
    for _ in range(3000):
        f = epsilon * np.log(a) - soft(g[None] - cost, 1)
        g = epsilon * np.log(b) - soft(f[:, None] - cost, 0)
    plan = np.exp((f[:, None] + g[None] - cost) / epsilon)
    return plan.T @ x / plan.sum(0)[:, None]


def pull(x, a, b, shares, y, epsilon, debiased):
    maps = sum(s * entropic_map(z, w, y, b, epsilon) for s, z, w in zip(shares, x, a, strict=True))
    return maps - (entropic_map(y, b, y, b, epsilon) if debiased else y)


@pytest.mark.parametrize("debiased", [True, False])
def test_maps_to_the_measures_agree_with_that_to_itself(rng, debiased):
    data = clouds(rng)
    sol = solve(*data, debiased=debiased)
    assert sol.converged, sol
    x, a, b, shares, _ = data
    y = np.asarray(sol.value, float)
    off = pull(x, a, b, shares, y, EPSILON, debiased)
    spread = np.sqrt(np.sum(shares[:, None] * a * ((x - np.sum(shares[:, None] * a, (0, 1))) ** 2).sum(2)))
    assert np.sqrt(np.sum(b * (off**2).sum(1))) / spread < (3e-6 if X64 else 1e-3)
    np.testing.assert_allclose(b @ y, np.einsum("k,kn,knd->d", shares, a, x), atol=1e-5 if X64 else 1e-3)


@pytest.mark.parametrize("debiased", [True, False])
def test_gaussians_on_a_line_have_the_variance_of_the_closed_form(debiased):
    """Janati, Muzellec, Peyré, Cuturi 2020: entropic maps between Gaussians are linear, hence an equation for sigma."""
    epsilon, widths = 0.5, (0.5, 1.5)
    level = (np.arange(60) + 0.5) / 60
    quantiles = np.sqrt(2) * np.asarray(jax.scipy.special.erfinv(jnp.asarray(2 * level - 1)), float)
    quantiles /= quantiles.std()
    x = np.stack([w * quantiles - 2 + 4 * k for k, w in enumerate(widths)])[:, :, None]
    sol = free_support_barycenter(jnp.asarray(x, FLOAT), epsilon=epsilon, debiased=debiased)
    assert sol.converged, sol

    def excess(sigma):
        slope = lambda w: (np.sqrt(epsilon**2 / 4 + 4 * sigma**2 * w**2) - epsilon / 2) / (2 * sigma**2)  # noqa: E731
        return np.mean([slope(w) for w in widths]) - (slope(sigma) if debiased else 1)

    low, high = 0.3, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    np.testing.assert_allclose(np.std(sol.value), low, rtol=0.02)
    np.testing.assert_allclose(np.mean(sol.value), 0, atol=1e-3)


def test_it_moves_turns_and_scales_with_the_clouds(rng):
    x, a, b, shares, init = clouds(rng)
    sol = solve(x, a, b, shares, init)
    angle = 0.7
    turn = 4.0 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    move = np.array([30.0, -50.0])
    there = solve(x @ turn.T + move, a, b, shares, init @ turn.T + move, epsilon=16 * EPSILON)
    assert there.converged
    np.testing.assert_allclose(there.value, np.asarray(sol.value) @ turn.T + move, atol=3e-5 if X64 else 2e-2)
    order = rng.permutation(N)
    other = solve(x[:, order], a[:, order], b, shares, init)
    np.testing.assert_allclose(other.value, sol.value, atol=1e-5 if X64 else 5e-3)


@pytest.mark.parametrize("exponent", [500, -500] if X64 else [40, -40])
def test_units_change_nothing(rng, exponent):
    x, a, b, shares, init = clouds(rng)
    unit = 2.0**exponent
    sol = solve(x, a, b, shares, init)
    there = solve(unit * x, a, b, shares, unit * init, epsilon=unit**2 * EPSILON)
    assert there.status == sol.status
    np.testing.assert_array_equal(there.value, unit * sol.value)


def test_one_measure_is_its_own_barycenter_and_padding_does_nothing(rng):
    x = rng.standard_normal((1, 7, 2))
    sol = free_support_barycenter(jnp.asarray(x, FLOAT), epsilon=1e-3, init=jnp.asarray(x[0] + 0.02, FLOAT))
    np.testing.assert_allclose(sol.value, x[0], atol=1e-3)
    x, _, b, shares, init = clouds(rng)
    short = [x[0], x[1, :9]]
    padded, weights = stack_ragged(short)
    again, more = stack_ragged(short, length=N + 3)
    one, two = (solve(z, w, b, shares, init) for z, w in ((padded, weights), (again, more)))
    assert one.converged
    np.testing.assert_allclose(one.value, two.value, atol=1e-5 if X64 else 5e-3)


def test_shares_move_the_answer_along_a_translation(rng):
    """Between a cloud and its translate the barycenter is a translate, so its derivative in the share is known."""
    x, a, _, _, _ = clouds(rng)
    move = np.array([2.0, -1.0])
    pair, weights = (jnp.asarray(np.stack(z), FLOAT) for z in ((x[0], x[0] + move), (a[0], a[0])))

    def at(t):
        return free_support_barycenter(pair, weights, weights[0], epsilon=EPSILON, shares=jnp.stack([1 - t, t])).value

    t = jnp.asarray(0.25, FLOAT)
    value, slope = jax.jvp(at, (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(value, x[0] + 0.25 * move, atol=1e-4 if X64 else 5e-3)
    np.testing.assert_allclose(slope, np.broadcast_to(move, x[0].shape), atol=1e-4 if X64 else 2e-2)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda x, a, b, s, y: (x, 2 * a, b, s, y), TransportStatus.UNEQUAL_MASSES),
        (lambda x, a, b, s, y: (x, a, 2 * b, s, y), TransportStatus.UNEQUAL_MASSES),
        (lambda x, a, b, s, y: (x, a, b, s * [3, -1], y), TransportStatus.NEGATIVE_WEIGHTS),
        (lambda x, a, b, s, y: (x * [[[np.nan, 1]]], a, b, s, y), Status.NONFINITE),
        (lambda x, a, b, s, y: (x, a, b, s, y * [[np.inf, 1]]), Status.NONFINITE),
    ],
)
def test_bad_numbers_are_a_status_and_take_no_step(rng, change, status):
    x, a, b, _, init = clouds(rng)
    sol = solve(*change(x, a, b, np.full(2, 0.5), init))
    assert sol.status == status
    assert sol.num_steps == 0


def test_what_cannot_be_finished_says_so(rng):
    x, a, b, shares, init = clouds(rng)
    sol = solve(x, a, b, shares, init, max_steps=jnp.asarray(2))
    assert sol.status == Status.MAX_STEPS
    assert np.all(np.isfinite(sol.value))
    short = lambda x: solve(x, a, b, shares, init, max_steps=jnp.asarray(2)).value[0, 0]  # noqa: E731
    slope = jax.grad(short)(jnp.asarray(x, FLOAT))
    assert np.all(np.isnan(slope))
    tiny = solve(x, a, b, shares, init, epsilon=1e-7, max_steps=jnp.asarray(3))  # sweeps end before marginals hold
    assert not tiny.converged
    assert np.all(np.isfinite(tiny.value))


@needs_x64
@pytest.mark.parametrize("seed", range(3))
def test_converged_is_true_from_wild_starts(seed):
    rng = np.random.default_rng(100 + seed)
    x, a, b, shares, init = clouds(rng)
    b[1], b[0] = 0, b[0] + b[1]  # a point without weight
    init = (init * 10.0 ** rng.integers(-6, 5), np.zeros((M, 2)), np.full((M, 2), 1e8))[seed]
    sol = solve(x, a, b, shares, init)
    assert np.all(np.isfinite(sol.value))
    if sol.converged:
        live = b > 0
        y = np.asarray(sol.value)[live]
        off = pull(x, a, b[live], shares, y, EPSILON, True)
        assert np.sqrt(np.sum(b[live] * (off**2).sum(1))) < 2e-5


def test_bad_shapes_raise(rng):
    x = jnp.zeros((2, 5, 3), FLOAT)
    call = lambda *data, **settings: free_support_barycenter(*data, epsilon=0.1, **settings)  # noqa: E731
    with pytest.raises(ValueError, match="3 axes"):
        call(x[0])
    with pytest.raises(ValueError, match=r"`a` must be \(2, 5\)"):
        call(x, jnp.ones((2, 4), FLOAT))
    with pytest.raises(ValueError, match=r"`b` must be \(5,\)"):
        call(x, None, jnp.ones(4, FLOAT))
    with pytest.raises(ValueError, match="init"):
        call(x, init=jnp.zeros((4, 2), FLOAT))
    with pytest.raises(ValueError, match="shares"):
        call(x, shares=jnp.ones(3, FLOAT))
    with pytest.raises(ValueError, match="epsilon"):
        free_support_barycenter(x, epsilon=-1.0)
