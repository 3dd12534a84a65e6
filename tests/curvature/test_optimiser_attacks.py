"""Optimisers and stability at the ends of the range: units that must not matter, lanes that break."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from solvers import (
    adahessian,
    batch_hessian_outlier,
    mfac,
    scale_by_adahessian,
    scale_by_mfac,
    sgd_stability,
    slq_heavy_ball,
)

from ..conftest import FLOAT, X64

TOP = 150 if X64 else 18
FAR = 250 if X64 else 30
SIZES = jnp.asarray([1.0, 10.0**-FAR, 10.0**-TOP, 10.0**TOP, 10.0**FAR], FLOAT)


def quadratic(seed=5, n=6):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return jnp.asarray((q * np.linspace(1, 9, n)) @ q.T, FLOAT), jnp.asarray(rng.standard_normal(n), FLOAT)


def test_adahessian_does_not_know_the_unit_of_the_loss():
    """Times any number that leaves the gradients in range the path is the same, bit for bit nearly."""
    matrix, x0 = quadratic()
    optimiser = optax.chain(scale_by_adahessian(eps=0.0), optax.scale(-0.1))

    def path(unit):
        def step(carry, _):
            x, state = carry
            g = unit * (matrix @ x)
            updates, state = optimiser.update(g, state, x, hvp_fn=lambda v: unit * (matrix @ v))
            return (x + updates, state), x + updates

        return jax.lax.scan(step, (x0, optimiser.init(x0)), None, length=12)[1]

    lanes = np.asarray(jax.jit(lambda s: jax.lax.map(path, s))(SIZES))
    assert np.all(np.isfinite(lanes))
    for lane in lanes[1:]:
        np.testing.assert_allclose(lane, lanes[0], rtol=1e-3 if not X64 else 1e-9, atol=1e-6)


@pytest.mark.parametrize("make", [
    lambda: adahessian(0.1), lambda: slq_heavy_ball(num_steps=4, refresh_every=2), lambda: mfac(0.1, 4, 1e-3),
], ids=["adahessian", "slq_heavy_ball", "mfac"])  # fmt: skip
def test_damaged_losses_stay_in_their_lanes(make):
    """64 losses at once, some with NaN, infinite, zero, huge, tiny or negative curvature: the others take finite steps.

    Where curvature and gradient are finite and in range, so is every step.
    """
    rng, lanes = np.random.default_rng(29), 64
    matrix, x0 = quadratic()
    kinds = rng.choice(["plain", "nan", "inf", "zero", "huge", "tiny", "negative", "saddle"], lanes)
    scale = {"nan": np.nan, "inf": np.inf, "zero": 0.0, "huge": 10.0 ** (TOP / 2), "tiny": 10.0**-TOP, "negative": -1.0}
    first = np.array([scale.get(k, 1.0) for k in kinds])
    second = np.where(kinds == "saddle", -1.0, 1.0)
    optimiser = make()

    def path(factors):
        weight = jnp.concatenate([jnp.full(3, factors[0]), jnp.full(3, factors[0] * factors[1])])
        loss = lambda x: jnp.sum(weight * (matrix @ x) ** 2) / 2  # noqa: E731

        def step(carry, _):
            x, state = carry
            updates, state = optax.with_extra_args_support(optimiser).update(jax.grad(loss)(x), state, x, obj_fn=loss)
            return (x0, state), updates  # the point stays: what is looked at is the step

        return jax.lax.scan(step, (x0, optimiser.init(x0)), None, length=6)[1]

    found = np.asarray(jax.jit(jax.vmap(path))(jnp.asarray(np.stack([first, second], 1), FLOAT)))
    sound = ~np.isin(kinds, ["nan", "inf"])
    assert np.all(np.isfinite(found[sound])), set(kinds[sound & ~np.isfinite(found).all((1, 2))])
    plain = found[kinds == "plain"]
    np.testing.assert_allclose(plain, np.broadcast_to(plain[0], plain.shape), rtol=1e-4, atol=1e-6)
    assert not np.any(found[kinds == "zero"])


def test_mfac_does_not_know_the_unit_of_the_gradients():
    """Gradients times s with damping times s^2 are steps over s, while squared norms are in range."""
    rng = np.random.default_rng(5)
    grads = jnp.asarray(rng.standard_normal((9, 7)), FLOAT)

    @jax.jit
    def path(unit):
        def step(state, g):
            updates, state = scale_by_mfac(4, 0.1 * unit * unit).update(unit * g, state)
            return state, updates * unit

        return jax.lax.scan(step, scale_by_mfac(4, 0.1).init(grads[0]), grads)[1]

    half = TOP if X64 else 15
    for unit in (10.0**-half, 10.0**half):
        np.testing.assert_allclose(path(FLOAT.type(unit)), path(FLOAT.type(1.0)), rtol=1e-3 if not X64 else 1e-9)


@partial(jax.jit, static_argnames="replacement")
def stability(a, batch, replacement=True):
    """The answer, and the growth a tenth below, at and a tenth above the critical learning rate."""
    found = sgd_stability(a, batch, replacement=replacement)
    return found, jnp.stack([found.radius(share * found.critical) for share in (0.9, 1.0, 1.1)])


@pytest.mark.parametrize("exponent", [-TOP, -TOP // 2, TOP // 2, TOP])
def test_stability_does_not_know_the_unit_of_the_gradients(exponent):
    """Learning rates scale as the inverse square; the growth at a learning rate in those units stays."""
    a, unit = np.random.default_rng(7).standard_normal((8, 3)), 10.0**exponent
    (plain, still), (moved, growth) = (stability(jnp.asarray(s * a, FLOAT), 1) for s in (1.0, unit))
    tolerance = 1e-3 if not X64 else 1e-8
    assert bool(moved.resolved)
    np.testing.assert_allclose(still[1], 1, rtol=1e-3)
    for name in ("critical", "trace_bound", "largest_bound"):
        rate = float(getattr(moved, name))
        if np.finfo(FLOAT).tiny * 1e3 < rate < np.inf:
            scaled = float(np.longdouble(rate) * np.longdouble(unit) ** 2)
            np.testing.assert_allclose(scaled, getattr(plain, name), rtol=tolerance)
            np.testing.assert_allclose(growth, still, rtol=tolerance)
        else:  # the true rate itself is out of range
            assert abs(exponent) == TOP


@pytest.mark.parametrize("replacement", [True, False])
def test_growth_changes_at_the_critical_rate(replacement):
    """Random, badly scaled and degenerate data: mean squares shrink or stay below it, grow above, within the bounds."""
    rng = np.random.default_rng(11)
    for case in range(12):
        a = rng.standard_normal((8, 3)) * 10.0 ** rng.uniform(-2, 2, (8, 1) if case % 3 == 0 else (1, 3))
        if case % 4 == 1:
            a[:, -1] = a[:, 0]
        found, growth = stability(jnp.asarray(a, FLOAT), 1 + case % 3, replacement)
        assert bool(found.resolved)
        assert float(found.critical) <= float(found.largest_bound) * (1 + 1e-3)
        if case % 3 == 0:
            assert float(found.critical) <= float(found.trace_bound) * (1 + 1e-3)
        assert growth[0] <= 1 + 1e-4
        assert growth[2] > 1
    broken, _ = stability(jnp.asarray(rng.standard_normal((8, 3)), FLOAT).at[2, 1].set(np.nan), 1, replacement)
    assert not bool(broken.resolved)
    assert np.isnan(float(broken.critical))


@pytest.mark.parametrize("exponent", [-FAR, FAR])
def test_outliers_have_units_too(exponent):
    """Eigenvalues and the deviation of the noise times a number, as far as the variance is in range."""
    values, half = np.array([4.0, 0.1, -3.0]), 10.0 ** (exponent / 2 - np.sign(exponent))
    plain = batch_hessian_outlier(jnp.asarray(values, FLOAT), 100, 0.32, 32)
    moved = batch_hessian_outlier(jnp.asarray(values * half, FLOAT), 100, FLOAT.type(0.32 * half**2), 32)
    np.testing.assert_allclose(np.asarray(moved, float) / half, plain, rtol=1e-4)
    alone = batch_hessian_outlier(jnp.asarray(values * 10.0**exponent, FLOAT), 100, 0.0, 32)  # no noise: nothing moves
    np.testing.assert_allclose(np.asarray(alone, float) / 10.0**exponent, values, rtol=1e-6)
