"""Sequences: every system is solved, what the learner is told is right, and derivatives go through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import (
    Arms,
    HagemanYoung,
    Status,
    Stencil,
    TsallisINF,
    learned_sor,
    solve_sequence,
    young_omega,
    young_prior,
    young_rate,
)
from solvers.core.bandits.learners import Learner, replay
from solvers.core.loop import Run
from solvers.linear.learned.relaxation_theory import arm_features, relaxation_features
from solvers.linear.learned.sequence import charge
from solvers.problems.linear import heat_start, heat_step, model_radius, shifted_laplacians

from ..compiled import chebyshev_cg, sor

DTYPE = jnp.result_type(float)
X64 = jax.config.jax_enable_x64
RNG = np.random.default_rng(43)
KEY = jax.random.key(17)
T, N = 6, 5
SHIFTS = jnp.asarray(0.1 + RNG.random(T), DTYPE)
RHS = jnp.asarray(RNG.standard_normal((T, N, N)), DTYPE)
SYSTEMS = jax.vmap(lambda c: Stencil.laplacian(2, shift=c))(SHIFTS)
FEW = Arms.sor([1.0, 1.4, 1.8])


class Cycle(Learner):
    """Plays the arms in turn and remembers the costs it was told."""

    def init(self, arms):
        return jnp.zeros((), jnp.int32), jnp.zeros(len(arms), DTYPE)

    def propose(self, state, context, key):
        return (jnp.arange(state[1].size, dtype=jnp.int32) == state[0] % state[1].size).astype(DTYPE), None

    def update(self, state, pull, cost, rate=None):
        return state[0] + 1, state[1].at[pull.arm].set(cost)


@pytest.mark.long
def test_costs_are_the_counts_of_single_solves():
    sol = solve_sequence(SYSTEMS, RHS, learner=Cycle(), arms=FEW, key=KEY, warm_start=False)
    assert sol.converged.all()
    assert sol.arms.tolist() == [0, 1, 2, 0, 1, 2]
    for t in range(T):
        A = Stencil.laplacian(2, shift=SHIFTS[t])
        one = sor(A, RHS[t], omega=FEW.omega[t % 3])
        assert int(one.num_steps) == int(sol.num_steps[t]) == float(sol.costs[t])
        np.testing.assert_allclose(sol.value[t], one.value, atol=1e-4)
    assert "6 of 6 converged" in repr(sol)
    np.testing.assert_allclose(sol.state[1], sol.costs[3:])
    assert jnp.all(sol.propensities == 1)
    np.testing.assert_allclose(sol.contexts, 4 / (4 + SHIFTS), rtol=1e-5)


def test_rounds_without_information_are_skipped():
    rhs = RHS.at[1].set(0).at[3].set(jnp.nan)
    sol = solve_sequence(SYSTEMS, rhs, learner=Cycle(), arms=FEW, key=KEY, warm_start=False)
    assert sol.arms.tolist() == [0, 1, 1, 2, 2, 0]
    assert jnp.isnan(sol.costs).tolist() == [False, True, False, True, False, False]
    assert sol.status.tolist() == [0, 0, 0, Status.NONFINITE, 0, 0]
    assert sol.state[0] == 4
    assert jnp.all(sol.value[1] == 0)


def test_a_failing_arm_leaves_nothing_unsolved():
    arms = Arms.sor([1.99])
    sol = solve_sequence(SYSTEMS, RHS, learner=Cycle(), arms=arms, key=KEY, patience=20, warm_start=False)
    assert sol.converged.all()
    assert jnp.all(sol.num_steps > 20)
    assert jnp.all((sol.costs > 20) & (sol.costs <= 200))


@pytest.mark.parametrize(("status", "error", "cost"), [(0, 1e-9, 20), (1, 1e-4, 40), (1, 0.5, 200), (4, 9.0, 200)])
def test_censored_costs_are_predictions(status, error, cost):
    steps, code = jnp.int32(20), jnp.int32(status)
    run = Run(None, None, jnp.asarray(error, DTYPE), code, steps, None)
    got, rate = charge(run, jnp.asarray(1.0, DTYPE), jnp.asarray(1e-8, DTYPE))
    np.testing.assert_allclose(float(got), cost, rtol=1e-4)
    np.testing.assert_allclose(float(rate), min(error, 1.0) ** (1 / 20), rtol=1e-4)


@pytest.mark.long
def test_methods_mix_in_one_program():
    arms = FEW + Arms.ssor_cg([1.0]) + Arms.chebyshev_cg([3], [10.0]) + Arms.multigrid_cg()
    assert len(arms) == 6
    sol = solve_sequence(SYSTEMS, RHS, learner=Cycle(), arms=arms, key=KEY, warm_start=False)
    assert sol.arms.tolist() == list(range(6))
    assert sol.converged.all()
    cheb = chebyshev_cg(Stencil.laplacian(2, shift=SHIFTS[4]), RHS[4], degree=3, ratio=10.0)
    assert sol.num_steps[4] == cheb.num_steps
    assert float(sol.costs[4]) == 3 * int(cheb.num_steps)


@pytest.mark.long
def test_scale_of_the_systems_does_not_change_decisions():
    def run(scale):
        systems = jax.vmap(lambda c: Stencil.laplacian(2, scale=scale, shift=scale * c))(SHIFTS)
        return learned_sor(systems, RHS, key=KEY, num_arms=8)

    one, other = run(jnp.asarray(1.0, DTYPE)), run(jnp.asarray(1024.0, DTYPE))
    assert one.arms.tolist() == other.arms.tolist()
    assert one.num_steps.tolist() == other.num_steps.tolist()


def heat(t, u, args):
    step = heat_step(t, u)
    return Stencil.laplacian(2, scale=args * step.s, shift=jnp.ones((), u.dtype)), step.rhs


@pytest.mark.long
def test_derivatives_through_a_simulation():
    u0, scale = heat_start(6, DTYPE), jnp.asarray(1.3, DTYPE)
    tol = 1e-12 if X64 else 1e-6

    def ours(scale, u0):
        out = solve_sequence(
            heat, x0=u0, num_systems=3, args=scale, learner=Cycle(), arms=Arms.sor([1.0, 1.2]), key=KEY, tol=tol
        )
        return jnp.sum(out.last**2) + jnp.sum(out.value[0])

    def exact(scale, u0):
        u = u0
        for t in range(3):
            A, b = heat(jnp.int32(t), u, scale)
            matrix = jax.vmap(A.mv)(jnp.eye(25, dtype=DTYPE).reshape(25, 5, 5)).reshape(25, 25).T
            u = jnp.linalg.solve(matrix, b.ravel()).reshape(5, 5)
            first = u if t == 0 else first
        return jnp.sum(u**2) + jnp.sum(first)

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(scale, u0) for f in (ours, exact))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6 if X64 else 1e-2, atol=1e-5), got, want)


@pytest.mark.long
def test_state_goes_on_and_keys_repeat():
    options = dict(learner=TsallisINF(), arms=Arms.sor(6), key=KEY)
    head = solve_sequence(SYSTEMS, RHS, **options)
    again = solve_sequence(SYSTEMS, RHS, **options)
    assert head.arms.tolist() == again.arms.tolist()
    more = solve_sequence(SYSTEMS, RHS, state=head.state, **options)
    assert more.state.rounds == head.state.rounds + T
    # The same system over and over starts at its solution: nothing is solved and nothing learned.
    same = solve_sequence(jax.tree.map(lambda x: jnp.stack([x[0]] * T), SYSTEMS), jnp.stack([RHS[0]] * T), **options)
    assert same.num_steps[1:].tolist() == [0] * (T - 1)
    assert jnp.isnan(same.costs[1:]).all()
    assert same.state.rounds == head.state.rounds - T + 1
    seen = []
    solve_sequence(SYSTEMS, RHS, progress=lambda t, e: seen.append(t), **options).value.block_until_ready()
    jax.effects_barrier()
    assert seen == [1, 2, 3, 4, 5, 6]


@pytest.mark.long
def test_sequences_map():
    run = jax.jit(jax.vmap(lambda r: learned_sor(SYSTEMS, r, key=KEY, num_arms=4)))
    out = run(jnp.stack([RHS, 2 * RHS[::-1]]))
    assert out.value.shape == (2, T, N, N)
    assert out.converged.all()


@pytest.mark.long
def test_young_prior_starts_near_the_best_and_learns():
    shifts, rhs = shifted_laplacians(RNG, 40, spread="low")
    systems = jax.vmap(lambda c: Stencil.laplacian(2, shift=c))(jnp.asarray(shifts, DTYPE))
    arms = Arms.sor(12)
    options = dict(arms=arms, key=KEY, tol=1e-4, warm_start=False, context=jnp.asarray(model_radius(shifts, 10), DTYPE))
    learned = solve_sequence(systems, jnp.asarray(rhs, DTYPE), learner=young_prior(), **options)
    blind = solve_sequence(systems, jnp.asarray(rhs, DTYPE), learner=TsallisINF(), **options)
    hageman = solve_sequence(systems, jnp.asarray(rhs, DTYPE), learner=HagemanYoung(0.97), **options)
    best = np.asarray(young_omega(model_radius(shifts, 10)))
    chosen = np.asarray(arms.omega[learned.arms])
    assert np.median(np.abs(np.log((2 - chosen) / (2 - best)))) < 0.5
    assert learned.costs.mean() < 0.75 * blind.costs.mean()
    assert hageman.costs.mean() < 0.75 * blind.costs.mean()


def test_features_have_the_shapes_promised():
    arms = Arms.sor(7)
    context = jnp.asarray(0.9, DTYPE)
    assert relaxation_features(context, arms).shape == (7, 13)
    assert arm_features(context, arms).shape == (7, 21)


def test_a_bound_above_one_is_enough():
    """Costs follow Young's rate at 0.96 times the bound, which alone says nothing where it exceeds one."""
    arms, bound = Arms.sor(12), 0.95 + 0.08 * RNG.random(80)
    rate = young_rate(np.asarray(arms.omega)[None], 0.96 * bound[:, None])
    table = np.log(1e-8) / np.log(np.asarray(rate))
    run = replay(young_prior(), jnp.asarray(table, DTYPE), key=KEY, contexts=jnp.asarray(bound, DTYPE), arms=arms)
    assert run.costs.shape == (80,)
    assert run.costs[30:].mean() < 1.05 * table[30:].min(1).mean()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda o: solve_sequence(SYSTEMS, **o), ValueError, "`rhs`"),
        (lambda o: solve_sequence(SYSTEMS, RHS[:4], **o), ValueError, "stacked along a leading axis"),
        (lambda o: solve_sequence(heat, **o), ValueError, "`x0` and `num_systems`"),
        (lambda o: solve_sequence(SYSTEMS, RHS, **{**o, "arms": [1.0]}), TypeError, "Arms"),
        (lambda o: solve_sequence(SYSTEMS, RHS, history=True, **o), ValueError, "`history`"),
        (lambda o: Arms.sor(0), ValueError, "`omega`"),
        (lambda o: Arms.chebyshev_cg([1, 2], [3.0]), ValueError, "`degree`"),
    ],
)
def test_bad_input_raises(call, error, says):
    with pytest.raises(error, match=says):
        call(dict(learner=Cycle(), arms=FEW, key=KEY))


@pytest.mark.long
def test_by_default_learning_costs_little():
    """Total sweeps over 100 shifted Laplacians, the first ones included, against every fixed arm's on the same."""
    shifts, rhs = shifted_laplacians(np.random.default_rng(8), 100, spread="low", n=8)
    shifts, rhs = jnp.asarray(shifts, DTYPE), jnp.asarray(rhs, DTYPE)
    arms, tol = Arms.sor(16), 1e-5
    make = lambda c: Stencil.laplacian(2, shift=c)  # noqa: E731
    fixed = jax.jit(
        jax.vmap(lambda w: jax.vmap(lambda c, b: sor(make(c), b, omega=w, tol=tol).num_steps)(shifts, rhs).sum())
    )(arms.omega.astype(DTYPE))
    learned = solve_sequence(jax.vmap(make)(shifts), rhs, arms=arms, key=jax.random.key(5), warm_start=False, tol=tol)
    assert bool(learned.converged.all())
    assert int(learned.num_steps.sum()) <= 1.3 * int(fixed.min())  # Tsallis-INF: 1.6 and more
