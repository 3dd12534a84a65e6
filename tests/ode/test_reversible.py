"""BDIA against its formula, its order, and the way back over its own steps."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import reversible_solve
from solvers.ode import BDIA, Before

from ..conftest import FLOAT, needs_x64

TOL = {"float64": 1e-12, "float32": 2e-5}[FLOAT.name]
SAVE = diffrax.SaveAt(t1=True, solver_state=True)


@pytest.fixture(autouse=True)
def diffrax_promotes_types():
    """diffrax is not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def pendulum(t, y, args):
    return {"angle": y["speed"], "speed": -args * jnp.sin(y["angle"]) + 0.1 * jnp.cos(3 * t)}


START = {"angle": jnp.asarray([1.0, 0.2], FLOAT), "speed": jnp.asarray([0.0, 1.5], FLOAT)}


def diffrax_solve(solver, steps, field=pendulum, y0=None, args=1.3, t1=2.0, **options):
    t1, args = (jnp.asarray(v, FLOAT) for v in (t1, args))
    y0 = START if y0 is None else y0
    return diffrax.diffeqsolve(diffrax.ODETerm(field), solver, jnp.zeros((), FLOAT), t1, t1 / steps, y0, args,
                               saveat=SAVE, max_steps=4096, **options)  # fmt: skip


def gap(a, b):
    return max(float(jnp.max(jnp.abs(u - v))) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_steps_are_those_of_the_formula(gamma):
    """Equation 3 of `inverse.diffusion.sampling`, written out with both increments, point by point."""
    found = diffrax_solve(BDIA(gamma), 8)
    h, older, y = 0.25, START, START
    field = lambda t, y: jax.tree.map(np.asarray, pendulum(t, y, 1.3))  # noqa: E731
    for i in range(8):
        slope = field(i * h, y)
        up = -h if i else 0.0  # the first step has no older point
        new = {k: older[k] - (1 - gamma) * (older[k] - y[k]) - gamma * up * slope[k] + h * slope[k] for k in y}
        older, y = y, new
    assert gap(jax.tree.map(lambda v: v[-1], found.ys), y) < 10 * TOL
    assert gap(found.solver_state.y, older) < 10 * TOL
    assert (BDIA(gamma).order(None) == 2) == (gamma == 1)


def test_with_gamma_one_it_is_the_leapfrog_rule_of_diffrax():
    ours, theirs = (diffrax_solve(solver, 64).ys for solver in (BDIA(), diffrax.LeapfrogMidpoint()))
    assert gap(ours, theirs) < 10 * TOL


def test_a_step_evaluates_the_field_once():
    calls = []

    def counted(t, y, args):
        calls.append(t)
        return -y

    term, one = diffrax.ODETerm(counted), jnp.ones(2, FLOAT)
    t0, t1 = jnp.asarray(0.0, FLOAT), jnp.asarray(0.1, FLOAT)
    state = BDIA().init(term, t0, t1, one, None)
    assert not calls
    BDIA().step(term, t0, t1, one, None, state, jnp.asarray(False))
    assert len(calls) == 1


@needs_x64
@pytest.mark.long
def test_order_two_and_order_one():
    exact = diffrax.diffeqsolve(
        diffrax.ODETerm(pendulum), diffrax.Dopri8(), 0.0, 2.0, 0.01, START, 1.3,
        stepsize_controller=diffrax.PIDController(rtol=1e-13, atol=1e-13), max_steps=4096,
    ).ys  # fmt: skip
    exact = jax.tree.map(lambda v: v[-1], exact)
    for gamma, order in ((1.0, 2.0), (0.5, 1.0)):
        errors = [gap(jax.tree.map(lambda v: v[-1], diffrax_solve(BDIA(gamma), n).ys), exact) for n in (256, 512)]
        assert abs(np.log2(errors[0] / errors[1]) - order) < 0.1
    ends = [reversible_solve(pendulum, 0.0, 2.0, START, 1.3, steps=n) for n in (256, 512)]
    errors = [gap(end.value, exact) for end in ends]
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.1
    assert 3.5 < ends[0].ripple / ends[1].ripple < 4.5


@pytest.mark.parametrize(("gamma", "steps"), [(1.0, 1000), (0.7, 12)])
def test_the_way_back_is_the_way_there(gamma, steps):
    """To rounding; below one rounding grows like a power of 1 / gamma, which 12 steps leave room for."""
    h, t1 = jnp.asarray(2.0**-6, FLOAT), jnp.asarray(steps * 2.0**-6, FLOAT)
    there = diffrax_solve(BDIA(gamma), steps, t1=t1)
    assert there.solver_state.step == h
    back = diffrax.diffeqsolve(
        diffrax.ODETerm(pendulum), BDIA(gamma).reversed(), t1 - h, jnp.zeros((), FLOAT), -h, there.solver_state.y,
        jnp.asarray(1.3, FLOAT), solver_state=Before(jax.tree.map(lambda v: v[-1], there.ys), h), max_steps=4096,
    )  # fmt: skip
    found = jax.tree.map(lambda v: v[-1], back.ys)
    assert gap(found, START) < TOL * (1 if gamma == 1 else gamma**-steps)
    assert gap(jax.tree.map(lambda v: v[-1], there.ys), START) > 0.05


@pytest.mark.long
def test_derivatives_are_those_of_the_steps():
    """In y0, args, the end time and an array that the field closes over, against diffrax through its own steps."""

    def ours(y0, args, t1, c):
        field = lambda t, y, a: jax.tree.map(lambda v: c * v, pendulum(t, y, a))  # noqa: E731
        end = reversible_solve(field, 0.0, t1, y0, args, steps=40)
        return jnp.sum(end.value["angle"] ** 2) + jnp.sum(end.previous["speed"])

    def direct(y0, args, t1, c):
        field = lambda t, y, a: jax.tree.map(lambda v: c * v, pendulum(t, y, a))  # noqa: E731
        h = t1 / 40
        older, y = y0, y0
        for i in range(40):
            slope = field(i * h, y, args)
            new = jax.tree.map(lambda o, s, i=i: o + (2 if i else 1) * h * s, older, slope)
            older, y = y, new
        return jnp.sum(y["angle"] ** 2) + jnp.sum(older["speed"])

    at = START, jnp.asarray(1.3, FLOAT), jnp.asarray(2.0, FLOAT), jnp.asarray(0.9, FLOAT)
    one, two = (jax.jit(jax.grad(f, (0, 1, 2, 3)))(*at) for f in (ours, direct))
    for u, v in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(u, v, rtol=1e3 * TOL, atol=1e3 * TOL)


def test_the_derivative_needs_no_memory_of_the_steps():
    y0 = jax.tree.map(lambda v: jnp.broadcast_to(v[:1], (256,)), START)

    def bytes_of(steps):
        gradient = jax.jit(jax.grad(lambda y: jnp.sum(reversible_solve(
            pendulum, 0.0, 2.0, y, 1.3, steps=steps).value["angle"])))  # fmt: skip
        return gradient.lower(y0).compile().memory_analysis().temp_size_in_bytes

    each = 2 * 256 * FLOAT.itemsize
    assert bytes_of(2000) < bytes_of(200) + 1800 * each / 20  # times and their controls; not the points


@pytest.mark.long
def test_where_the_way_back_is_lost_derivatives_are_nan():
    """A solution that decays by e^40: its value is the oscillation's, the ripple says so, and there is no way back."""
    end, pull = jax.vjp(lambda y: reversible_solve(lambda t, y, _: -y, 0.0, 40.0, y, steps=800), jnp.ones(1, FLOAT))
    assert end.ripple > 0.5
    assert jnp.all(jnp.isnan(pull(jax.tree.map(jnp.ones_like, end))[0]))
    fine = jax.grad(lambda y: reversible_solve(lambda t, y, _: -y, 0.0, 1.0, y, steps=800).value[0])(jnp.ones(1, FLOAT))
    np.testing.assert_allclose(fine, np.exp(-1.0), rtol=1e-4)


def test_a_jump_starts_afresh():
    """After a jump of the field the point before it is not used: the step is Euler's."""
    term, y = diffrax.ODETerm(lambda t, y, _: -3 * y), jnp.ones(1, FLOAT)
    t0, t1 = jnp.asarray(1.0, FLOAT), jnp.asarray(1.25, FLOAT)
    state = Before(2 * y, t1 - t0)
    for jump, expected in ((True, 1 - 0.75), (False, 2 - 1.5)):
        found = BDIA().step(term, t0, t1, y, None, state, jnp.asarray(jump))[0]
        np.testing.assert_allclose(found, expected, rtol=TOL)


@pytest.mark.parametrize("steps", [1, 2.0, True])
def test_what_is_no_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match="reversible_solve: `steps` must be"):
        reversible_solve(pendulum, 0.0, 1.0, START, 1.0, steps=steps)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="reversible_solve: `y0` must be"):
        reversible_solve(lambda t, y, _: y, 0.0, 1.0, jnp.arange(3), steps=4)
