"""Small systems in scalars, as accelerators solve them: against NumPy, against the loops, and in whole solves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.constrained import dense, sketched_newton
from solvers.constrained.dense import LOOPED, UNROLLED, Attempt, DenseModel, System, attempt
from solvers.constrained.kkt import Question
from solvers.core import accelerator
from solvers.core.linalg import unrolled
from solvers.core.solution import Status

from ..conftest import FLOAT

EPS = float(np.finfo(FLOAT).eps)
RTOL = {"float64": 1e-8, "float32": 1e-2}[FLOAT.name]
N, M = 4, 2


def matrix(rng, *, shift=0.3, rho=2.0, d=1e-2):
    """Return a `Condensed` with its B indefinite, and (1) as one array."""
    B, C = rng.standard_normal((N, N)), rng.standard_normal((M, N))
    B, half = B + B.T, np.sqrt(1 - rho * d)
    whole = np.block([[B + shift * np.eye(N), C.T], [C, -d * np.eye(M)]])
    parts = (B, C, B + rho * C.T @ C, shift, rho, half, d)
    return unrolled.Condensed(*(jnp.asarray(part, FLOAT) for part in parts)), whole


def test_solutions_are_those_of_the_unscaled_system(rng):
    A, whole = matrix(rng)
    sides = rng.standard_normal((2, N + M))
    rights = [(jnp.asarray(r[:N], FLOAT), jnp.asarray(r[N:], FLOAT)) for r in sides]
    got = jax.jit(lambda A: unrolled.solutions(A, rights, 3))(A)
    np.testing.assert_allclose(np.stack(got), np.linalg.solve(whole, sides.T).T, rtol=30 * RTOL, atol=30 * RTOL)


def test_the_first_shift_whose_pivots_are_positive(rng):
    A, _ = matrix(rng)
    B, C = np.asarray(A.B, np.float64), np.asarray(A.C, np.float64)
    lowest = np.linalg.eigvalsh(B + 2.0 * C.T @ C)[0]
    assert lowest < 0
    shifts = np.array([0.0, 0.5, 0.9, 1.2, 4.0]) * -lowest  # the fourth is the first beyond, its pivots large enough
    pick = jax.jit(lambda shifts: unrolled.first_convex(A, shifts, 10 * N * EPS))
    first, done, dual = pick(jnp.asarray(shifts, FLOAT))
    half, expected, smallest = np.sqrt(1 - 2.0 * 1e-2), None, -1.0
    for k, s in enumerate(shifts):
        K = B + 2.0 * C.T @ C + s * np.eye(N)
        if s > -lowest:
            smallest = np.min(np.diagonal(np.linalg.cholesky(K))) ** 2
        if smallest > 0.1 * s:
            expected = k
            break
    assert bool(done)
    assert int(first) == expected
    complement = half**2 * C @ np.linalg.solve(K, C.T) + 1e-2 * np.eye(M)
    np.testing.assert_allclose(dual, np.min(np.diagonal(np.linalg.cholesky(complement))) ** 2, rtol=RTOL)
    first, done, _ = pick(jnp.asarray(0.1 * shifts, FLOAT))
    assert not done
    assert int(first) == 4
    assert not pick(jnp.asarray(np.full(5, np.nan), FLOAT))[1]


@functools.cache
def both():
    """Return the search for a tame step with loops and with everything written out, over a batch of questions."""

    def run(how, H, G, ask):
        model = DenseModel(H, G)
        system = System.of(model, ask)
        zero, no, zeros = jnp.zeros((), FLOAT), jnp.zeros((), bool), jnp.zeros(N, FLOAT)
        end = Attempt(zero, system.initial, zeros, jnp.zeros(M, FLOAT), zeros, no, no, no, jnp.zeros((), jnp.int32))
        end = jax.lax.while_loop(
            lambda e: ~e.tame & (e.tries < 200), lambda e: attempt(system, model, ask, e, how), end
        )
        return end._replace(v=how.bent(system, model, ask, end))

    return [jax.jit(jax.vmap(functools.partial(run, how))) for how in (LOOPED, UNROLLED)]


def questions(rng):
    """Return systems: convex, indefinite, dependent gradients, none, of the restoration, to explore, not finite."""
    H, G = rng.standard_normal((8, N, N)), rng.standard_normal((8, M, N))
    H = H + H.transpose(0, 2, 1)
    H[0] = H[0] @ H[0] + np.eye(N)
    H[1] -= 3 * np.eye(N)
    G[2, 1] = G[2, 0]
    G[3] = 0
    H[4] = 1e6 * (H[4] @ H[4]) - 1e3 * np.eye(N)
    H[6] = -1e9 * np.eye(N)
    H[7, 0, 0] = np.nan
    rc = rng.standard_normal((8, M))
    rc[2, 1] = rc[2, 0]
    flag = lambda *lanes: jnp.asarray([k in lanes for k in range(8)])  # noqa: E731
    ask = Question(
        rx=rng.standard_normal((8, N)), rc=rc, penalised=flag(5), renew=flag(3),
        lam=rng.standard_normal((8, M)), hint=np.zeros(8), explore=flag(1, 6), index=np.zeros(8, np.int32),
    )  # fmt: skip
    cast = lambda x: jnp.asarray(x, FLOAT if np.asarray(x).dtype.kind == "f" else None)  # noqa: E731
    return jax.tree.map(cast, (H, G, ask))


def test_loops_and_written_out_systems_agree(rng):
    H, G, ask = questions(rng)
    loop, once = (how(H, G, ask) for how in both())
    for field in ("convex", "tame", "tries", "deficient"):
        np.testing.assert_array_equal(getattr(loop, field)[:7], getattr(once, field)[:7], err_msg=field)
    np.testing.assert_allclose(loop.shift[:7], once.shift[:7], rtol=10 * EPS)
    assert not loop.convex[7]
    assert not once.convex[7]
    for lane in range(7):
        for field in ("dx", "dlam"):
            a, b = (np.asarray(getattr(end, field)[lane]) for end in (loop, once))
            np.testing.assert_allclose(a, b, rtol=RTOL, atol=100 * RTOL * np.max(np.abs(a)), err_msg=f"{field} {lane}")
    for lane in (1, 6):
        assert abs(float(np.dot(loop.v[lane], once.v[lane]))) > 1 - 10 * RTOL


NAMES = ("converged", "saddle", "twice", "infeasible", "unbounded")


def objective(x, which):
    nearest = lambda x: jnp.sum((x - jnp.asarray([-1.0, 2.0], FLOAT)) ** 2)  # noqa: E731
    saddle, cubic = (lambda x: x[1] - x[0] ** 2), (lambda x: -(x[0] ** 3) - x[0] ** 2)
    return jax.lax.switch(which, [nearest, saddle, nearest, nearest, cubic], x)


def equality(x, which):
    line = lambda x: x[0] + x[1] - 1  # noqa: E731
    circle, nothing = (lambda x: jnp.stack([jnp.sum(x**2) - 4, 0 * x[0]])), (lambda x: jnp.stack([x[1] - 1, 0 * x[0]]))
    twice, never = (lambda x: jnp.stack([line(x), 2 * line(x)])), (lambda x: jnp.stack([jnp.sum(x**2) + 1, 0 * x[0]]))
    return jax.lax.switch(which, [circle, circle, twice, never, nothing], x)


@pytest.mark.slow
def test_whole_solves_end_alike(monkeypatch):
    lanes = 8
    x0 = np.random.default_rng(11).standard_normal((5 * lanes, 2)) + 0.5
    x0[3] = np.nan
    which = jnp.repeat(jnp.arange(5, dtype=jnp.int32), lanes)

    def solve():
        one = lambda x, which: sketched_newton(objective, x, equality=equality, args=which, max_steps=60)  # noqa: E731
        return jax.jit(jax.vmap(one))(jnp.asarray(x0, FLOAT), which)

    loop = solve()
    monkeypatch.setattr(dense, "by_platform", lambda *operands, cpu, accelerator: accelerator(*operands))
    jax.clear_caches()
    once = solve()
    jax.clear_caches()
    np.testing.assert_array_equal(loop.status, once.status)
    seen = {name: set(np.asarray(loop.status).reshape(5, lanes)[k]) for k, name in enumerate(NAMES)}
    assert seen["converged"] == {Status.CONVERGED, Status.NONFINITE}
    assert seen["twice"] == {Status.CONVERGED}
    assert seen["infeasible"] == {Status.INFEASIBLE}
    assert Status.UNBOUNDED in seen["unbounded"]
    good = np.asarray(loop.converged)
    np.testing.assert_allclose(loop.value[good], once.value[good], rtol=RTOL, atol=100 * RTOL)
    if jnp.float64 == FLOAT:
        np.testing.assert_array_equal(loop.num_steps[good], once.num_steps[good])


def test_a_process_without_an_accelerator_traces_one_form(monkeypatch):
    calls = []
    forms = {name: lambda x, name=name: calls.append(name) or x + len(calls) for name in ("cpu", "accelerator")}
    monkeypatch.setattr(accelerator, "present", lambda: False)
    jax.jit(lambda x: accelerator.by_platform(x, **forms))(1.0)
    assert calls == ["cpu"]
    monkeypatch.setattr(accelerator, "present", lambda: True)
    got = jax.jit(lambda x: accelerator.by_platform(x, cpu=lambda x: x + 1, accelerator=lambda x: x + 2))(1.0)
    assert got == (2.0 if jax.default_backend() == "cpu" else 3.0)
