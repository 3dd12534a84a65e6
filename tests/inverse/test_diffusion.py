"""Diffusion: moments, orders and round trips against exact scores; posteriors without Monte Carlo error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Status, inverse
from solvers.core.operators import MatrixOperator
from solvers.problems.inverse import GaussianMixture, GaussianPrior, gaussian_instance

from ..conftest import FLOAT, needs_x64

COSINE = inverse.CosineSchedule()
SCHEDULES = {
    "cosine": COSINE,
    "vp": inverse.VariancePreserving(),
    "ve": inverse.VarianceExploding(0.003, 20.0),
    "discrete": inverse.DiscreteSchedule.linear(dtype=FLOAT),
}


def scored(prior, schedule):
    return lambda x, t: prior.score(x, schedule.alpha(t), schedule.sigma(t))


def mixture(rng, d=3):
    roots = rng.standard_normal((2, d, d))
    spreads = 0.3 * roots @ roots.transpose(0, 2, 1) + 0.05 * np.eye(d)
    return GaussianMixture(
        *(jnp.asarray(v, FLOAT) for v in (np.array([0.0, 0.7]), rng.standard_normal((2, d)), spreads))
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_go_from_signal_to_noise(name):
    grid = SCHEDULES[name].grid(40, FLOAT)
    assert grid.alpha[-1] == 1
    assert grid.sigma[-1] == 0
    ratio = np.asarray(grid.alpha[:-1] / grid.sigma[:-1])
    assert np.all(np.diff(ratio) > 0)
    assert ratio[0] < 0.06
    if name != "ve":
        np.testing.assert_allclose(grid.alpha**2 + grid.sigma**2, 1, atol=1e-6)


def test_the_discrete_table_is_met_at_its_times():
    schedule = inverse.DiscreteSchedule.linear(50, dtype=FLOAT)
    t = jnp.arange(1, 51, dtype=FLOAT) / 50
    np.testing.assert_allclose(schedule.alpha(t) ** 2, schedule.alpha_bars, rtol=1e-5)


@pytest.mark.parametrize("kind", ["score", "denoiser", "noise"])
def test_tweedie_is_exact_for_mixtures(kind, rng):
    """Mean and covariance of x_0 given x_t: to 1e-10 of the closed form, whatever the model predicts."""
    prior, t = mixture(rng), jnp.asarray(0.4, FLOAT)
    alpha, sigma = COSINE.alpha(t), COSINE.sigma(t)
    x = jnp.asarray(rng.standard_normal(3), FLOAT)
    score = scored(prior, COSINE)
    model = {
        "score": score,
        "denoiser": lambda x, t: (x + COSINE.sigma(t) ** 2 * score(x, t)) / COSINE.alpha(t),
        "noise": lambda x, t: -COSINE.sigma(t) * score(x, t),
    }[kind]
    mean, covariance = prior.denoised(x, alpha, sigma)
    found = inverse.tweedie(model, COSINE, x, t, kind=kind, order=2)
    tol = 1e-10 if FLOAT == "float64" else 1e-4
    np.testing.assert_allclose(found.mean, mean, atol=tol)
    np.testing.assert_allclose(found.covariance.matrix(), covariance, atol=tol)
    assert inverse.tweedie(model, COSINE, x, t, kind=kind).covariance is None


def error_at(steps, stepper):
    """Distance from the exact flow of a Gaussian: each direction goes from its spread at time 1 to its own."""
    variances = jnp.asarray([1.0, 0.3, 0.05], FLOAT)
    schedule = inverse.CosineSchedule(0.05)
    model = lambda x, t: -x / (schedule.alpha(t) ** 2 * variances + schedule.sigma(t) ** 2)  # noqa: E731
    x = jnp.asarray([1.0, -0.5, 0.8], FLOAT)
    exact = x * jnp.sqrt(variances / (0.05**2 * variances + 1 - 0.05**2))
    return jnp.linalg.norm(inverse.sample(model, schedule, x, steps=steps, stepper=stepper).value - exact)


@needs_x64
@pytest.mark.parametrize(("gamma", "order"), [(1.0, 2.0), (0.5, 1.0), (0.0, 1.0)])
def test_order_of_convergence(gamma, order):
    """Second order for gamma = 1, first below, DDIM for gamma = 0."""
    stepper = inverse.BDIA(gamma)
    errors = [float(error_at(n, stepper)) for n in (80, 160, 320)]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, order, atol=0.1)
    if gamma == 0:
        np.testing.assert_allclose(error_at(80, inverse.DDIM()), errors[0], rtol=1e-10)


def rotating(x, t):
    """A prediction of the noise that turns: the flow oscillates instead of decaying."""
    return jnp.stack([-x[1], x[0]])


@needs_x64
def test_a_thousand_steps_there_and_back():
    x = jnp.asarray([0.7, -0.4], FLOAT)
    found = jax.jit(lambda x: inverse.invert(rotating, COSINE, x, steps=1000, kind="noise", rtol=1e-12))(x)
    assert found.converged, found
    assert found.error <= 1e-12
    # The other way round it starts where the flow expands by 1 / alpha, and rounding with it.
    schedule = inverse.CosineSchedule(0.05)
    pair = inverse.sample(rotating, schedule, x, steps=1000, kind="noise", stepper=inverse.BDIA()).pair
    again = inverse.invert(rotating, schedule, pair, steps=1000, kind="noise", rtol=1e-12)
    assert jnp.linalg.norm(again.value.noisier - x) <= 1e-12


@needs_x64
@pytest.mark.parametrize(("steps", "trusted"), [(10, True), (20, True), (40, False), (80, False)])
def test_amplification_is_refused(steps, trusted):
    """At gamma = 1/2 rounding grows like 2^steps: fine for 20 steps, and refused, whatever came out, beyond."""
    x = jnp.asarray([0.7, -0.4], FLOAT)
    found = inverse.invert(rotating, COSINE, x, steps=steps, kind="noise", stepper=inverse.BDIA(0.5))
    assert found.amplification == 2.0 ** (steps - 1)
    if trusted:
        assert found.status in (Status.CONVERGED, inverse.InversionStatus.INEXACT)
        assert found.error < 1e-9
    else:
        assert found.status == inverse.InversionStatus.AMPLIFIED
        assert "gamma = 1" in found.message


def test_inverting_ddim_is_measured_not_believed(rng):
    prior = GaussianPrior(jnp.zeros(2, FLOAT), jnp.diag(jnp.asarray([1.0, 0.1], FLOAT)))
    x = jnp.asarray([0.5, 0.2], FLOAT)
    found = inverse.invert(scored(prior, COSINE), COSINE, x, steps=20, stepper=inverse.DDIM())
    assert found.status == inverse.InversionStatus.INEXACT
    assert found.error > 1e-3
    broken = inverse.invert(scored(prior, COSINE), COSINE, x * jnp.nan, steps=20)
    assert broken.status == Status.NONFINITE


def network(parameters, x, t):
    return -jnp.tanh(parameters @ x) * (1 + t)


def loss(stepper, steps, parameters, x):
    model = lambda x, t: network(parameters, x, t)  # noqa: E731
    value = inverse.sample(model, inverse.CosineSchedule(0.1), x, steps=steps, kind="noise", stepper=stepper).value
    return jnp.sum(value**2)


@needs_x64
@pytest.mark.long
def test_the_reversible_derivative_is_the_derivative_and_needs_no_memory(rng):
    """Same gradient; the memory of a compiled one does not grow with the steps, where the direct one's does."""
    parameters, x = jnp.asarray(0.03 * rng.standard_normal((64, 64))), jnp.asarray(rng.standard_normal(64))
    direct, reversible = inverse.BDIA(), inverse.BDIA(adjoint="reversible")
    one, two = (jax.grad(loss, (2, 3))(s, 30, parameters, x) for s in (direct, reversible))
    for u, v in zip(one, two, strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-8, atol=1e-9 * np.abs(v).max())

    def memory(stepper, steps):
        gradient = jax.jit(jax.grad(lambda p, x: loss(stepper, steps, p, x)))
        return gradient.lower(parameters, x).compile().memory_analysis().temp_size_in_bytes

    assert memory(reversible, 400) <= memory(reversible, 40) + 64 * 400
    assert memory(direct, 400) > memory(direct, 40) + 8 * 64 * 300


def affine(guidance, steps=100, schedule=COSINE):
    """Return the exact mean and covariance of a deterministic sampler of a Gaussian, an affine map, and the truth."""
    case = gaussian_instance(jax.random.key(11), dtype=FLOAT)
    draw = lambda x: inverse.posterior_sample(  # noqa: E731
        scored(case.prior, schedule), schedule, MatrixOperator(case.matrix), case.y, jax.random.key(5),
        noise=case.noise, guidance=guidance, steps=steps, start=x,
    )  # fmt: skip
    points = jax.jit(jax.vmap(draw))(jnp.concatenate([jnp.zeros((1, 20), FLOAT), jnp.eye(20, dtype=FLOAT)]))
    turn = (points[1:] - points[:1]) * schedule.sigma(1.0)
    return points[0], turn.T @ turn, case.posterior


@pytest.mark.long
def test_second_order_conditioning_is_the_posterior():
    """Mean to 0.02 and trace within 2 %, in 100 steps; first order is off by a third and by half."""
    schedule = COSINE if FLOAT == "float64" else inverse.CosineSchedule(0.03)
    mean, covariance, posterior = affine("second_order", schedule=schedule)
    assert jnp.linalg.norm(mean - posterior.mean) <= (0.002 if FLOAT == "float64" else 0.02)
    assert abs(jnp.trace(covariance) / jnp.trace(posterior.covariance) - 1) <= 0.02
    assert jnp.linalg.norm(covariance - posterior.covariance) <= 0.02 * jnp.linalg.norm(posterior.covariance)
    mean, covariance, posterior = affine("pigdm")
    assert jnp.linalg.norm(mean - posterior.mean) > 0.2
    assert jnp.trace(covariance) / jnp.trace(posterior.covariance) > 1.3


def test_dds_is_a_reconstruction_not_a_sample():
    """Without fresh noise too: its mean is that of something else, as its docstring says."""
    mean, _, posterior = affine(inverse.DDS(eta=0.0))
    assert jnp.linalg.norm(mean - posterior.mean) > 0.2


@pytest.mark.long
def test_stsl_without_trace_is_dps(rng):
    """And with it, on a Gaussian prior, too: the covariance does not depend on the point. On mixtures they differ."""
    A, y, key = MatrixOperator(jnp.eye(3, dtype=FLOAT)[:2]), jnp.ones(2, FLOAT), jax.random.key(9)
    draw = lambda prior, g: inverse.posterior_sample(  # noqa: E731
        scored(prior, COSINE), COSINE, A, y, key, noise=0.1, guidance=g, steps=12
    )
    both = mixture(rng)
    normal = GaussianPrior(both.means[0], both.covariances[0])
    tol = 1e-9 if FLOAT == "float64" else 1e-3
    plain = draw(both, inverse.DPS())
    np.testing.assert_allclose(draw(both, inverse.STSL(trace=0.0)), plain, atol=tol)
    assert jnp.linalg.norm(draw(both, inverse.STSL()) - plain) > 1e-3
    np.testing.assert_allclose(draw(normal, inverse.STSL()), draw(normal, inverse.DPS()), atol=tol)


@pytest.mark.long
def test_dds_with_total_variation_keeps_its_split_variable(rng):
    """With a denoiser that knows nothing it is ADMM: many sweeps reach the total-variation reconstruction."""
    A = inverse.Radon(jnp.linspace(0, 3, 7, dtype=FLOAT), 10)
    y = A(jnp.zeros((10, 10), FLOAT).at[3:7, 2:8].set(1))
    guidance = inverse.DDS(total_variation=0.3, penalty=10.0, cg_steps=20, eta=0.0)
    found = inverse.posterior_sample(lambda x, t: x, COSINE, A, y, jax.random.key(3), noise=1.0, kind="denoiser",
                                     guidance=guidance, steps=200)  # fmt: skip
    oracle = inverse.admm(A, y, inverse.GroupL1(0.3, axis=0), analysis=inverse.Differences(found),
                          tol=1e-4 if FLOAT == "float64" else 1e-3, max_steps=1000)  # fmt: skip
    assert jnp.linalg.norm(found - oracle.value) < 0.02 * jnp.linalg.norm(oracle.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, A, y, k: inverse.posterior_sample(s, COSINE, A, y, k, noise=0.1, guidance="magic"),
        lambda s, A, y, k: inverse.posterior_sample(s, COSINE, A, y, k, noise=-0.1),
        lambda s, A, y, k: inverse.posterior_sample(s, COSINE, A, y[:1], k, noise=0.1),
        lambda s, A, y, k: inverse.posterior_sample(s, COSINE, A, y, k, noise=0.1, steps=0),
        lambda s, A, y, k: inverse.posterior_sample(s, COSINE, jnp.eye(2), y, k, noise=0.1),
        lambda s, A, y, k: inverse.sample(s, COSINE, y, kind="velocity"),
        lambda s, A, y, k: inverse.sample(s, COSINE, y, stepper="ddim"),
        lambda s, A, y, k: inverse.sample(s, COSINE, y, stepper=inverse.DDIM(1.0)),
        lambda s, A, y, k: inverse.tweedie(s, COSINE, y, 0.5, order=3),
    ],
)
def test_wrong_arguments_are_refused(call):
    A, y = MatrixOperator(jnp.eye(2, dtype=FLOAT)), jnp.ones(2, FLOAT)
    with pytest.raises((ValueError, TypeError), match="must be"):
        call(lambda x, t: -x, A, y, jax.random.key(3))
