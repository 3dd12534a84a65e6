"""SOR and SSOR against sweeps written out in NumPy, Young's theory, and every way to fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import solvers
from solvers import LinearStatus, SparseRows, Status, Stencil, young_omega, young_rate
from solvers.linear.learned.relaxation_theory import jacobi_radius

from ..compiled import sor, ssor
from .reference import count_sor, dense, sor_iterates

X64 = jax.config.jax_enable_x64
TIGHT = 1e-9 if X64 else 1e-5
DTYPE = jnp.result_type(float)
RNG = np.random.default_rng(31)


def spd(n):
    g = RNG.standard_normal((n, n))
    return g @ g.T / n + np.diag(1 + RNG.random(n))


def star(ndim, shift=0.4):
    return Stencil.laplacian(ndim, shift=jnp.asarray(shift, DTYPE))


NINE = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
NINE_POINT = Stencil(jnp.asarray([8.5 if o == (0, 0) else -1.0 for o in NINE], DTYPE), NINE)
VARYING = Stencil.diffusion(jnp.asarray(np.exp(RNG.standard_normal((5, 6))), DTYPE), shift=0.3)


def test_dense_sweeps_are_the_rowwise_ones():
    A, b = spd(6), RNG.standard_normal(6)
    for steps, want in enumerate(sor_iterates(A, b, 1.3, 4), 1):
        got = sor(jnp.asarray(A, DTYPE), jnp.asarray(b, DTYPE), omega=1.3, max_steps=steps, tol=0.0)
        assert got.num_steps == steps
        np.testing.assert_allclose(got.value, want, rtol=TIGHT * 10, atol=TIGHT)


def test_symmetric_sweeps_are_the_rowwise_ones():
    A, b = spd(6), RNG.standard_normal(6)
    want = sor_iterates(A, b, 1.2, 3, both_ways=True)[-1]
    got = ssor(jnp.asarray(A, DTYPE), jnp.asarray(b, DTYPE), omega=1.2, max_steps=3, tol=0.0)
    np.testing.assert_allclose(got.value, want, rtol=TIGHT * 10, atol=TIGHT)


@pytest.mark.parametrize("shape", [(5, 6), (4, 4), (7,), (3, 4, 5), (1, 5), (1, 1)])
def test_stencil_sweeps_are_red_black(shape):
    A, b = star(len(shape)), RNG.standard_normal(shape)
    index = np.indices(shape).reshape(len(shape), -1).sum(0)
    order = np.argsort(index % 2, kind="stable").tolist()
    M = dense(A, shape)
    want = sor_iterates(M, b.ravel(), 1.4, 3, order)[-1]
    got = sor(A, jnp.asarray(b, DTYPE), omega=1.4, max_steps=3, tol=0.0)
    np.testing.assert_allclose(got.value.ravel(), want, rtol=TIGHT * 10, atol=TIGHT)
    if len(order) > 2:
        rows = A.rows(shape)
        assert len(rows.starts) == 3
        same = sor(rows, jnp.asarray(b.ravel(), DTYPE), omega=1.4, max_steps=3, tol=0.0)
        np.testing.assert_allclose(same.value, want, rtol=TIGHT * 10, atol=TIGHT)


def test_nine_points_take_four_colours():
    shape, b = (5, 6), RNG.standard_normal((5, 6))
    i, j = np.indices(shape).reshape(2, -1)
    order = np.argsort(2 * (i % 2) + j % 2, kind="stable").tolist()
    want = sor_iterates(dense(NINE_POINT, shape), b.ravel(), 1.2, 3, order)[-1]
    got = sor(NINE_POINT, jnp.asarray(b, DTYPE), omega=1.2, max_steps=3, tol=0.0)
    np.testing.assert_allclose(got.value.ravel(), want, rtol=TIGHT * 10, atol=TIGHT)


@pytest.mark.parametrize("both_ways", [False, True])
def test_levels_reproduce_the_natural_order(both_ways):
    shape, b = (5, 6), RNG.standard_normal(30)
    rows = VARYING.rows(shape, ordering="natural")
    assert len(rows.starts) - 1 == 10
    want = sor_iterates(dense(VARYING, shape), b, 1.5, 3, both_ways=both_ways)[-1]
    solver = ssor if both_ways else sor
    got = solver(rows, jnp.asarray(b, DTYPE), omega=1.5, max_steps=3, tol=0.0)
    np.testing.assert_allclose(got.value, want, rtol=TIGHT * 10, atol=TIGHT)


@pytest.mark.long
def test_counts_are_those_of_testing_every_sweep():
    b = RNG.standard_normal((8, 8))
    order = np.argsort(np.indices((8, 8)).sum(0).ravel() % 2, kind="stable").tolist()
    tol = 1e-4
    want = count_sor(dense(star(2), (8, 8)), b.ravel(), 1.3, tol, order)
    for every in (1, 5, 8):
        got = sor(star(2), jnp.asarray(b, DTYPE), omega=1.3, tol=tol, every=every)
        assert (int(got.num_steps), int(got.status)) == (want, Status.CONVERGED)


def test_duplicates_add_and_patterns_are_reused():
    row, column = [0, 0, 1, 1, 0, 2], [0, 1, 1, 0, 0, 2]
    rows = SparseRows(jnp.asarray([2.0, -1.0, 3.0, -1.0, 1.0, 2.0], DTYPE), row, column)
    x = jnp.asarray([1.0, 2.0, 3.0], DTYPE)
    M = sp.coo_matrix((np.asarray(rows.values), (row, column))).toarray()
    np.testing.assert_allclose(rows.mv(x), M @ np.asarray(x), rtol=1e-6)
    np.testing.assert_allclose(rows.transposed.mv(x), M.T @ np.asarray(x), rtol=1e-6)
    other = rows.with_values(2 * rows.values)
    np.testing.assert_allclose(other.mv(x), 2 * M @ np.asarray(x), rtol=1e-6)
    traces = []

    @jax.jit
    def solve(system, b):
        traces.append(1)
        return sor(system, b, omega=1.1).value

    assert np.allclose(solve(rows, x), 2 * solve(other, x), rtol=1e-3)
    assert len(traces) == 1


def test_transpose_of_a_varying_stencil():
    coefficients = jnp.asarray(RNG.standard_normal((9, 4, 5)), DTYPE)
    A, shape = Stencil(coefficients, NINE), (4, 5)
    np.testing.assert_allclose(dense(A.transposed, shape), dense(A, shape).T)


@pytest.mark.long
def test_young():
    n, beta = 8, np.cos(np.pi / 9)
    omega = float(young_omega(beta))
    M = dense(Stencil.laplacian(2), (n, n))
    index = np.argsort(np.indices((n, n)).sum(0).ravel() % 2, kind="stable")
    M = M[index][:, index]
    for w in (1.0, 1.3, omega, 1.7):
        C = np.eye(n * n) - np.linalg.solve(np.diag(np.diag(M)) / w + np.tril(M, -1), M)
        rho = np.abs(np.linalg.eigvals(C)).max()
        np.testing.assert_allclose(float(young_rate(w, beta)), rho, rtol=1e-3 if w == omega else 1e-4)
    for w in (1.0, 1.3):
        np.testing.assert_allclose(float(jacobi_radius(young_rate(w, beta), w)), beta, rtol=1e-5)
    b = jnp.asarray(RNG.standard_normal((n, n)), DTYPE)
    steps = [int(sor(Stencil.laplacian(2), b, omega=w, tol=1e-4).num_steps) for w in (1.0, 1.3, omega, 1.8)]
    assert np.argmin(steps) == 2


@pytest.mark.long
def test_failures_say_so():
    A, b = jnp.asarray(spd(6), DTYPE), jnp.asarray(RNG.standard_normal(6), DTYPE)
    over = jax.jit(lambda w: sor(A, b, omega=w))(jnp.asarray(2.6, DTYPE))
    assert over.status == Status.DIVERGED
    assert jnp.all(jnp.isfinite(over.value))
    assert over.error <= 1
    bad = A.at[3, 3].set(0)
    traced = jax.jit(lambda A: sor(A, b, omega=1.2, x0=b))(bad)
    assert traced.status == LinearStatus.DIAGONAL
    assert "diagonal" in traced.message
    np.testing.assert_allclose(traced.value, b, rtol=1e-6)
    unstable = jnp.asarray([[1.0, 3.0], [3.0, 1.0]], DTYPE)
    assert sor(unstable, b[:2], omega=1.0).status == Status.DIVERGED
    below = sor(star(2), jnp.ones((6, 6), DTYPE), omega=1.3, tol=1e-30)
    assert below.status == Status.STAGNATED
    assert below.error < (1e-14 if X64 else 1e-6)
    assert sor(A, b, omega=1.2, max_steps=2).status == Status.MAX_STEPS
    for where in (A.at[0, 1].set(jnp.nan), A.at[1, 1].set(jnp.inf)):
        lost = jax.jit(lambda A: sor(A, b, omega=1.2))(where)
        assert (int(lost.status), int(lost.num_steps)) == (Status.NONFINITE, 0)
    lost = sor(A, b.at[2].set(jnp.nan), omega=1.2)
    assert (int(lost.status), int(lost.num_steps)) == (Status.NONFINITE, 0)
    assert jnp.all(lost.value == 0)


def test_a_rise_before_a_slow_fall_is_no_stagnation():
    """Red-black, the first sweep takes a smooth residual above its start for over a hundred sweeps."""
    sol = sor(Stencil.laplacian(2), jnp.ones((60, 60), DTYPE), omega=1.0, tol=0.5, history=4)
    assert sol.converged
    assert sol.history[1] > 1.2
    assert sol.num_steps > 200


def test_nothing_to_do():
    A, b = jnp.asarray(spd(6), DTYPE), jnp.asarray(RNG.standard_normal(6), DTYPE)
    zero = sor(A, 0 * b, omega=1.2, x0=b)
    assert (int(zero.status), int(zero.num_steps), float(zero.error)) == (0, 0, 0.0)
    assert jnp.all(zero.value == 0)
    exact = sor(A, b, omega=1.2, x0=jnp.linalg.solve(A, b))
    assert (int(exact.status), int(exact.num_steps)) == (0, 0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_the_data_does_not_matter(scale):
    A, b = star(2), jnp.asarray(RNG.standard_normal((6, 6)), DTYPE)
    one, other = sor(A, b, omega=1.3), sor(A, scale * b, omega=1.3)
    assert one.num_steps == other.num_steps
    np.testing.assert_allclose(other.value / scale, one.value, rtol=1e-4)
    scaled = sor(Stencil(scale * A.coefficients, A.offsets), b, omega=1.3)
    assert scaled.num_steps == one.num_steps


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda b: solvers.sor(jnp.ones((2, 3)), b, omega=1.0),
            r"sor: `A` must be \(n, n\) with n = len\(b\) = 3, got \(2, 3\)",
        ),
        (lambda b: solvers.sor(jnp.eye(3), b, omega=2.0), r"sor: `omega` must be in \(0, 2\), got 2.0"),
        (lambda b: solvers.sor(jnp.eye(3), b, omega=float("nan")), "omega"),
        (lambda b: solvers.sor(jnp.eye(3).at[1, 1].set(0), b, omega=1.0), r"positive diagonal, got 0.0 in row \[1\]"),
        (lambda b: solvers.sor(jnp.eye(3).at[2, 2].set(-1), b, omega=1.0), r"positive diagonal, got -1.0 in row \[2\]"),
        (lambda b: solvers.sor(jnp.eye(3), b, omega=1.0, x0=jnp.ones(2)), "`x0` must be of shape"),
        (lambda b: solvers.sor(jnp.eye(3), b, omega=1.0, every=0), "`every`"),
        (lambda b: solvers.sor(star(2), b, omega=1.0), "2-D grid"),
        (lambda b: Stencil(jnp.ones(2), [(0, 0), (0, 2)]), "offsets"),
        (lambda b: Stencil(jnp.ones(2), [(0, 1), (1, 0)]), "zero offset"),
        (lambda b: Stencil(jnp.ones(3), [(0, 0), (0, 1)]), "coefficients"),
        (lambda b: SparseRows(jnp.ones(2), [0, 1], [1, 0]), "diagonal"),
        (lambda b: SparseRows.from_scipy(sp.eye(2, 3)), "square"),
    ],
)
def test_bad_input_raises(call, says):
    with pytest.raises(ValueError, match=says):
        call(jnp.ones(3))


def test_functions_cannot_be_swept():
    with pytest.raises(TypeError, match="MatrixFree"):
        sor(lambda x: x, jnp.ones(3), omega=1.0)


@pytest.mark.long
def test_a_batch_is_its_lanes():
    shifts = jnp.asarray([0.1, 2.0, jnp.nan, 0.7], DTYPE)
    b = jnp.asarray(RNG.standard_normal((4, 6, 6)), DTYPE)

    def solve(c, b):
        return sor(Stencil.laplacian(2, shift=c), b, omega=1.4)

    batch = jax.jit(jax.vmap(solve))(shifts, b)
    assert batch.status.tolist() == [0, 0, Status.NONFINITE, 0]
    for k in (0, 1, 3):
        one = jax.jit(solve)(shifts[k], b[k])
        assert batch.num_steps[k] == one.num_steps
        np.testing.assert_allclose(batch.value[k], one.value, rtol=TIGHT * 100, atol=TIGHT)
    many = jax.vmap(lambda b: sor(star(2), b, omega=1.3))(b)
    assert many.converged.all()
