"""Penalties against closed forms: Heun-Euler's error, stiffness of linear equations, no further evaluation."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Heuristics, TrackHeuristics, error_penalty, stiffness_penalty

from ..conftest import FLOAT

TOL = {"float64": 1e-10, "float32": 1e-5}[FLOAT.name]
SAVE = diffrax.SaveAt(t1=True, solver_state=True)


@pytest.fixture(autouse=True)
def diffrax_promotes_types():
    """diffrax is not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def linear(rate):
    return diffrax.ODETerm(lambda t, y, args: rate * y)


def solve(term, solver, t1=1.0, dt0=0.1, controller=None, y0=None, **options):
    y0 = jnp.ones(1, FLOAT) if y0 is None else y0
    if controller is not None:
        options["stepsize_controller"] = controller
    t0, t1, dt0 = (jnp.asarray(t, FLOAT) for t in (0.0, t1, dt0))
    return diffrax.diffeqsolve(term, solver, t0, t1, dt0, y0, saveat=SAVE, max_steps=256, **options)


def heun_penalty(rate, kind="sum", adjoint=None):
    solver = TrackHeuristics(diffrax.Heun(), rtol=0.0, atol=1.0)
    options = {} if adjoint is None else {"adjoint": adjoint}
    return error_penalty(solve(linear(rate), solver, **options), kind=kind)


def heun_closed_form(rate, kind="sum"):
    """Ten steps of 0.1 from one: the factor is ``1 + z + z^2 / 2``, the estimate ``z^2 y / 2``."""
    z = rate * 0.1
    y = (1 + z + z * z / 2) ** jnp.arange(10)
    E = z * z * y / 2
    return {"sum": jnp.sum(E) * 0.1, "mean": jnp.mean(E) * 0.1, "squared": jnp.sum(E**2)}[kind]


@pytest.mark.parametrize("kind", ["sum", "mean", "squared"])
@pytest.mark.long
def test_the_error_of_heun_and_euler_is_its_closed_form(kind):
    rate = jnp.asarray(-1.7, FLOAT)
    ours, exact = (jax.value_and_grad(f)(rate, kind) for f in (heun_penalty, heun_closed_form))
    np.testing.assert_allclose(ours, exact, rtol=TOL)


@pytest.mark.long
def test_every_adjoint_that_can_gives_the_derivative():
    rate = jnp.asarray(-1.7, FLOAT)
    exact = jax.grad(heun_closed_form)(rate)
    direct = jax.grad(lambda r: heun_penalty(r, adjoint=diffrax.DirectAdjoint()))(rate)
    forward = jax.jvp(lambda r: heun_penalty(r, adjoint=diffrax.ForwardMode()), (rate,), (jnp.ones_like(rate),))[1]
    np.testing.assert_allclose([direct, forward], [exact, exact], rtol=TOL)
    with pytest.raises(Exception, match=r"(?i)adjoint|differentiat|solver_state"):
        jax.grad(lambda r: heun_penalty(r, adjoint=diffrax.BacksolveAdjoint()))(rate)


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Dopri5()], ids=lambda s: type(s).__name__)
@pytest.mark.long
def test_the_stiffness_of_a_linear_equation_is_its_rate(solver):
    rate = jnp.asarray(-7.3, FLOAT)

    def penalties(rate):
        sol = solve(linear(rate), TrackHeuristics(solver))
        return stiffness_penalty(sol), [stiffness_penalty(sol, kind=kind) for kind in ("mean", "sum")]

    (largest, others), slope = jax.value_and_grad(penalties, has_aux=True)(rate)
    np.testing.assert_allclose([largest, *others], [7.3, 7.3, 73.0], rtol=100 * TOL)
    np.testing.assert_allclose(slope, -1.0, rtol=1e4 * TOL)


def test_the_stiffness_of_a_matrix_lies_within_its_spectrum_and_backwards_in_time():
    """Of a symmetric matrix, between the least and the largest rate; time's direction does not matter."""
    rates = jnp.asarray([-1.0, -30.0], FLOAT)
    term = diffrax.ODETerm(lambda t, y, args: rates * y)
    y0 = jnp.ones(2, FLOAT)
    found = float(stiffness_penalty(solve(term, TrackHeuristics(diffrax.Tsit5()), t1=0.2, dt0=0.02, y0=y0)))
    assert 1 < found <= 30 * (1 + 100 * TOL)
    back = diffrax.diffeqsolve(
        linear(jnp.asarray(2.0, FLOAT)), TrackHeuristics(diffrax.Tsit5()),
        *(jnp.asarray(t, FLOAT) for t in (1, 0, -0.1)), jnp.ones(1, FLOAT), saveat=SAVE,
    )  # fmt: skip
    np.testing.assert_allclose(stiffness_penalty(back), 2.0, rtol=1e3 * TOL)
    assert error_penalty(back) > 0


def counting(solver, controller):
    """Return the solution and how often the vector field was evaluated, counted on the host."""
    calls = []

    def field(t, y, args):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]])

    y0 = jnp.asarray([2.0, 0.0], FLOAT)
    sol = solve(diffrax.ODETerm(field), solver, t1=4.0, dt0=0.5, controller=controller, y0=y0)
    jax.block_until_ready(sol.ys)
    jax.effects_barrier()
    return sol, len(calls)


@pytest.mark.long
def test_it_changes_no_step_and_evaluates_nothing_more():
    """With refused steps on the way: only accepted ones are kept, as a list of them made one by one shows."""
    tol = {"float64": 1e-6, "float32": 1e-4}[FLOAT.name]
    controller = diffrax.PIDController(rtol=tol, atol=tol)
    plain, calls = counting(diffrax.Tsit5(), controller)
    kept, same = counting(TrackHeuristics(diffrax.Tsit5(), rtol=tol, atol=tol), controller)
    assert calls == same
    np.testing.assert_allclose(plain.ys, kept.ys, rtol=4 * jnp.finfo(FLOAT).eps)  # a GPU fuses the two otherwise
    seen = kept.solver_state[1]
    assert isinstance(seen, Heuristics)
    assert int(kept.stats["num_rejected_steps"]) > 0
    assert int(seen.steps) == int(kept.stats["num_accepted_steps"])
    # Accepted steps have a scaled error below one, so that the sums are bounded by their number and the time.
    assert 0 < float(seen.error) < 4.0
    assert 0 < float(seen.squared) < int(seen.steps)


@pytest.mark.long
def test_lanes_scan_and_trees():
    term = diffrax.ODETerm(lambda t, y, args: {"a": -args * y["a"], "b": -2 * args * y["b"]})
    y0 = {"a": jnp.ones(2, FLOAT), "b": jnp.ones((), FLOAT)}

    def penalties(rate):
        sol = diffrax.diffeqsolve(
            term, TrackHeuristics(diffrax.Tsit5()), jnp.asarray(0.0, FLOAT), jnp.asarray(1.0, FLOAT),
            jnp.asarray(0.1, FLOAT), y0, rate, saveat=SAVE,
        )  # fmt: skip
        return error_penalty(sol), stiffness_penalty(sol)

    rates = jnp.asarray([0.5, 1.0, 3.0], FLOAT)
    many = jax.jit(jax.vmap(penalties))(rates)
    alone = [penalties(r) for r in rates]
    small = {"float64": 0, "float32": 1e-5}[FLOAT.name]  # where the error estimate itself is rounding
    np.testing.assert_allclose(many, np.asarray(alone).T, rtol=1e3 * TOL, atol=small)
    assert np.all(np.diff(many[0]) > 0)
    poisoned = jax.jit(jax.vmap(penalties))(rates.at[1].set(jnp.nan))
    np.testing.assert_array_equal(np.asarray(poisoned)[:, [0, 2]], np.asarray(many)[:, [0, 2]])


@pytest.mark.long
def test_an_equation_at_rest_has_no_penalty_and_finite_derivatives():
    """Zero over zero: at rest neither error nor stiffness can be seen."""

    def both(rate):
        sol = solve(linear(rate), TrackHeuristics(diffrax.Tsit5()), y0=jnp.zeros(1, FLOAT))
        return error_penalty(sol) + stiffness_penalty(sol)

    value, slope = jax.value_and_grad(both)(jnp.asarray(-1.0, FLOAT))
    assert value == 0
    assert slope == 0


@pytest.mark.long
def test_what_cannot_be_is_refused():
    with pytest.raises(TypeError, match="TrackHeuristics: `solver`"):
        TrackHeuristics(diffrax.Euler())
    rate = jnp.asarray(-1.0, FLOAT)
    plain = solve(linear(rate), diffrax.Tsit5())
    for penalty in (error_penalty, stiffness_penalty):
        with pytest.raises(ValueError, match="`solution` must be"):
            penalty(plain)
        with pytest.raises(ValueError, match="`kind` must be"):
            penalty(plain, kind="median")
    with pytest.raises(ValueError, match="two stages"):
        stiffness_penalty(solve(linear(rate), TrackHeuristics(diffrax.Heun())))
    # An implicit method works, without stiffness.
    stiff = solve(
        linear(rate), TrackHeuristics(diffrax.Kvaerno3()), controller=diffrax.PIDController(rtol=1e-3, atol=1e-5)
    )
    assert error_penalty(stiff) > 0
