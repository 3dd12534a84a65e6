"""The mathematics: optimality, duality, the guarantee, and the algorithm as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import xlogy

from solvers import PublishedSNS, Status
from solvers.core.loop import Limits
from solvers.transport.entropic import newton_step as ascent
from solvers.transport.entropic.newton import begin
from solvers.transport.problem import prepare
from solvers.transport.systems.gibbs_kernel import absorb, empty, row_error, sweep
from solvers.transport.systems.newton_systems import Direction

from ..compiled import sinkhorn, sns_sinkhorn
from ..conftest import FLOAT, X64, needs_x64


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(50)
    x, y = rng.random((20, 2)), rng.random((25, 2))
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    a, b = (w / w.sum() for w in (rng.random(20) + 0.2, rng.random(25) + 0.2))
    return tuple(jnp.asarray(z, FLOAT) for z in (cost, a, b))


@pytest.fixture(scope="module")
def solution(data):
    return sns_sinkhorn(*data, epsilon=0.01)


def test_plan_is_the_scaled_kernel_with_the_marginals(data, solution):
    """P = D exp(-C / epsilon) E with the right marginals is the unique optimum (Sinkhorn 1964)."""
    cost, a, b = (np.asarray(z, float) for z in data)
    plan = np.asarray(solution.plan(), float)
    if X64:  # in float32 the smallest entries underflow
        log_scaled = np.log(plan) + cost / 0.01
        centred = log_scaled - log_scaled.mean(0) - log_scaled.mean(1, keepdims=True) + log_scaled.mean()
        assert abs(centred).max() < 1e-10
    assert abs(plan.sum(1) - a).sum() + abs(plan.sum(0) - b).sum() < 5 * float(solution.tol)


def test_agrees_with_sinkhorn(data, solution):
    other = sinkhorn(*data, epsilon=0.01)
    assert other.converged
    assert other.num_steps > 5 * solution.num_steps
    np.testing.assert_allclose(other.f, solution.f, atol=1e-8 if X64 else 1e-3)


def test_values_bracket_the_optimum(data, solution):
    cost, a, b = data
    plan = solution.rounded_plan()
    np.testing.assert_allclose(plan.sum(1), a, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(0), b, rtol=1e-5)
    assert np.all(np.asarray(plan) >= 0)
    assert -1e-6 < solution.duality_gap < (1e-8 if X64 else 1e-4)
    rough = sns_sinkhorn(cost, a, b, epsilon=0.01, max_steps=1)
    assert rough.status == Status.MAX_STEPS
    assert rough.duality_gap > 1e-3
    assert rough.regularized_cost <= solution.regularized_cost + 1e-6
    np.testing.assert_allclose(
        solution.regularized_cost,
        solution.transport_cost + 0.01 * jnp.sum(xlogy(solution.plan(), solution.plan()) - solution.plan()),
        rtol=1e-5 if X64 else 1e-3,
    )


def test_potentials_have_equal_means(data, solution):
    _, a, b = data
    np.testing.assert_allclose(jnp.sum(a * solution.f), jnp.sum(b * solution.g), rtol=1e-5)


@needs_x64
@pytest.mark.long
def test_regularized_cost_has_envelope_derivatives(data, solution):
    """P for the cost, f and g for the weights, the entropy for epsilon: exact, and without a linear solve."""
    value = lambda c, a, b, e: sns_sinkhorn(c, a, b, epsilon=e).regularized_cost  # noqa: E731
    gradient = jax.grad(value, (0, 1, 2, 3))
    of_cost, of_a, of_b, of_epsilon = gradient(*data, jnp.asarray(0.01))
    plan = solution.plan()
    np.testing.assert_allclose(of_cost, plan, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(of_a, solution.f, rtol=1e-8)
    np.testing.assert_allclose(of_b, solution.g, rtol=1e-8)
    np.testing.assert_allclose(of_epsilon, jnp.sum(plan * (jnp.log(plan) - 1)), rtol=1e-8)
    compiled = jax.jit(gradient).lower(*data, jnp.asarray(0.01)).compile().as_text()
    potential = jax.grad(lambda c: sns_sinkhorn(c, epsilon=0.01).f[0])
    solving = jax.jit(potential).lower(data[0]).compile().as_text()
    assert solving.count("potrf") > compiled.count("potrf")


def test_keeps_the_guarantee_with_a_senseless_hessian(data):
    """Any direction whatever: the error still obeys Sinkhorn's bound, and the dual never falls."""
    problem = prepare(*data, jnp.asarray(0.01, FLOAT), jnp.asarray(0, FLOAT))

    class Nonsense:
        def prepare(self, problem, kernel):
            return None

        def direction(self, prepared, problem, kernel, system, hard):
            noise = jnp.sin(1e3 * jnp.arange(20, dtype=FLOAT) + 1e4 * kernel.r[0])
            return Direction(3 * noise, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    steps, flat = 40, jnp.zeros(20, FLOAT)
    far = jnp.asarray(10**6)
    state, _ = begin(problem, (flat, problem.least), True, False, Nonsense(), Limits(jnp.asarray(0, FLOAT), far))
    step = jax.jit(lambda s: ascent.newton_step(problem, s, jnp.asarray(0, FLOAT), far, Nonsense()))

    def dual(state):
        f, g = state.kernel.potentials
        return float(jnp.sum(problem.a * f) + jnp.sum(problem.b * g))

    duals, errors = [dual(state)], [float(state.error)]
    for _ in range(steps):
        state = step(state)
        duals.append(dual(state))
        errors.append(float(state.error))
    best = sinkhorn(*data, epsilon=0.01)
    optimum = dual(
        ascent.state_at(problem, absorb(problem, empty(problem), *best.reduced, problem.epsilon), Nonsense())
    )
    assert np.all(np.diff(duals) >= -1e-6)
    assert min(errors) <= np.sqrt(2 * (optimum - duals[0]) / (0.01 * steps))
    assert errors[-1] < errors[0]


def test_sweep_gains_at_least_the_divergence(data):
    """The inequality behind the guarantee, at a point far from the solution."""
    problem = prepare(*data, jnp.asarray(0.01, FLOAT), jnp.asarray(0, FLOAT))
    kernel = absorb(problem, empty(problem), jnp.zeros(20, FLOAT), problem.least, problem.epsilon)
    after = sweep(problem, kernel)
    dual = lambda k: jnp.sum(problem.a * k.potentials[0]) + jnp.sum(problem.b * k.potentials[1])  # noqa: E731
    divergence = jnp.sum(problem.a * jnp.log(problem.a / kernel.r))
    assert dual(after) - dual(kernel) >= 0.01 * divergence * (1 - 1e-4)
    assert divergence >= row_error(problem, kernel) ** 2 / 2
    assert row_error(problem, after) <= row_error(problem, kernel)


@needs_x64
def test_step_counts_do_not_grow(data):
    """Outer steps on the notes' random assignment (n = 500, eta = 1200), which take Sinkhorn some 20,000 sweeps."""
    cost = jnp.asarray(np.random.default_rng(0).random((500, 500)))
    solution = sns_sinkhorn(cost, epsilon=1 / 1200, hessian="dense")
    assert solution.converged
    assert solution.num_steps <= 13
    assert solution.linear_steps <= 200


@needs_x64
@pytest.mark.long
def test_published_algorithm_converges_where_its_settings_suit(data):
    """The paper's random assignment: a density of 10/n suits, 2/n is too thin, and nothing is said but the truth."""
    cost = jnp.asarray(np.random.default_rng(0).random((100, 100)))
    good = sns_sinkhorn(cost, epsilon=1 / 300, published=PublishedSNS(warmup=20, density=0.2), max_steps=60)
    assert good.converged
    assert 20 < good.num_steps < 35
    np.testing.assert_allclose(good.plan(), sns_sinkhorn(cost, epsilon=1 / 300).plan(), atol=1e-9)
    thin = sns_sinkhorn(cost, epsilon=1 / 300, published=PublishedSNS(warmup=20, density=0.012), max_steps=26)
    assert thin.status == Status.MAX_STEPS
    assert thin.error > 1e-9


def test_annealing_is_skipped_where_sinkhorn_is_fast(data):
    cost, a, b = data
    easy = sns_sinkhorn(cost, a, b, epsilon=0.5)
    assert easy.converged
    assert easy.num_steps <= 4


@needs_x64
@pytest.mark.long
def test_annealing_in_single_precision_gives_the_same_answer(data, solution, monkeypatch):
    import solvers.transport.entropic.newton as newton

    monkeypatch.setattr(newton, "anneals_in_single", lambda problem: True)
    jax.clear_caches()
    mixed = sns_sinkhorn(*data, epsilon=0.01, history=32)
    jax.clear_caches()
    assert mixed.converged
    np.testing.assert_allclose(mixed.f, solution.f, atol=1e-8)
    assert np.all(np.isfinite(mixed.history[: int(mixed.num_steps) + 1]))
    assert mixed.num_steps <= solution.num_steps + 3


def test_warm_start_from_a_neighbour(data, solution):
    cost, a, b = data
    near = sns_sinkhorn(cost * 1.01, a, b, epsilon=0.01, init=solution.value)
    assert near.converged
    assert near.num_steps < solution.num_steps
