"""What would make a status a lie: scales, missing diagonals, unconverged derivatives, a layout fused into its use."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import solvers
from solvers import (
    AMG,
    Arms,
    ChebCB,
    LinearStatus,
    MatrixFree,
    SparseRows,
    Status,
    Stencil,
    ThompsonRegression,
    TsallisINF,
    multigrid_cg,
    solve_sequence,
)
from solvers.core.precision import matmul
from solvers.linear.cycles.smoothing import by_colours
from solvers.linear.systems.stencil import Phases

from .. import compiled
from ..compiled import chebyshev_cg, flexible_cg, sor, ssor_cg
from ..conftest import FLOAT, X64, needs_x64

HUGE = 1e200 if X64 else 1e30


def dense(n=6):
    rng = np.random.default_rng(30)
    a = rng.standard_normal((n, n))
    return jnp.asarray(a @ a.T + n * np.eye(n), FLOAT), jnp.asarray(rng.standard_normal(n), FLOAT)


@pytest.mark.parametrize("solver", [chebyshev_cg, ssor_cg])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_solution_outside_the_range_is_not_converged(solver, sign):
    """x of size HUGE^2 or HUGE^-2 does not exist in this precision: the status says so and the value is finite."""
    A, b = dense()
    solution = jax.jit(solver)(A * HUGE**-sign, b * HUGE**sign)
    assert solution.status == LinearStatus.RANGE
    assert np.all(np.isfinite(solution.value))
    assert solution.error >= 1
    assert "rescale" in solution.message


@pytest.mark.parametrize("scale", [HUGE, 1 / HUGE])
def test_scales_that_cancel_do_not_matter(scale):
    grid, b = Stencil.laplacian(2), jnp.ones((9, 9), FLOAT)
    grid = Stencil(grid.coefficients.astype(FLOAT), grid.offsets)
    plain, scaled = (
        multigrid_cg(Stencil(grid.coefficients * s, grid.offsets), b * jnp.asarray(s, FLOAT)) for s in (1, scale)
    )
    assert scaled.converged
    np.testing.assert_allclose(scaled.value, plain.value, rtol=1e-6 if X64 else 1e-3)


def test_matrix_free_without_a_diagonal():
    """The function sees arrays of the shape of b only, and ones scale nothing."""
    A, b = dense()
    shapes = []

    def product(x, matrix):
        shapes.append(x.shape)
        return matmul(matrix, x)

    for solve in (chebyshev_cg, lambda *x: flexible_cg(*x, precondition=lambda r, _: r)):
        solution = solve(MatrixFree(product, args=A), b)
        assert solution.converged
        np.testing.assert_allclose(solution.value, np.linalg.solve(A, b), rtol=1e-6 if X64 else 1e-3)
    assert set(shapes) == {b.shape}


@needs_x64
def test_gradients_through_an_unfinished_solve():
    A, b = dense()
    loss = lambda b, **more: jnp.sum(sor(A, b, omega=1.0, **more).value)  # noqa: E731
    exact = np.linalg.solve(A, np.ones(6))
    np.testing.assert_allclose(jax.grad(loss)(b), exact, rtol=1e-6)
    assert np.all(np.isnan(jax.grad(lambda b: loss(b, max_steps=1))(b)))
    rough = jax.grad(lambda b: loss(b, max_steps=1, unconverged="approximate"))(b)
    assert np.all(np.isfinite(rough))
    with pytest.raises(ValueError, match="`unconverged`"):
        sor(A, b, omega=1.0, unconverged="sometimes")


@needs_x64
@pytest.mark.long
def test_a_sequence_says_which_derivatives_it_does_not_know():
    """A system that did not converge, and all later ones that start from it in a simulation."""

    def last(b, steps, **more):
        systems = jnp.stack([dense()[0]] * 3)
        solution = solve_sequence(
            systems, jnp.stack([b] * 3), learner=TsallisINF(), arms=Arms.sor(2), key=jax.random.key(5),
            max_steps=steps, warm_start=False, **more,
        )  # fmt: skip
        return jnp.sum(solution.last)

    _, b = dense()
    np.testing.assert_allclose(jax.grad(last)(b, 1000), np.linalg.solve(dense()[0], np.ones(6)), rtol=1e-6)
    assert np.all(np.isnan(jax.grad(last)(b, 1)))
    assert np.all(np.isfinite(jax.grad(lambda b: last(b, 1, unconverged="approximate"))(b)))


def test_omega_that_is_no_number_is_nonfinite_and_not_stagnated():
    A, b = dense()
    assert jax.jit(lambda w: sor(A, b, omega=w))(jnp.asarray(np.nan, FLOAT)).status == Status.NONFINITE


@pytest.mark.parametrize("shape", [(4, 5), (7,), (3, 4, 5), (1, 1)])
def test_unpacking_fused_into_its_use(shape):
    """Values of a program that uses a solution at once."""
    x = jnp.asarray(np.random.default_rng(31).standard_normal(shape), FLOAT)
    phases = Phases(Stencil.laplacian(len(shape)), shape)
    fused = jax.jit(lambda x: jnp.sum(jnp.sin(phases.unpack(phases.pack(2 * x)))))(x)
    np.testing.assert_allclose(fused, np.sin(2 * np.asarray(x, float)).sum(), rtol=1e-5)
    np.testing.assert_array_equal(phases.unpack(phases.pack(x)), x)


def test_sweeps_colour_by_colour_are_those_of_the_classes():
    """On a 27-point stencil with coefficients that vary, both ways, against the polyphase sweep."""
    rng = np.random.default_rng(33)
    shape, offsets = (5, 4, 3), list(itertools.product((-1, 0, 1), repeat=3))
    coefficients = rng.random((27, *shape))
    coefficients[13] += 30
    stencil = Stencil(jnp.asarray(coefficients, FLOAT), offsets)
    z, r = (jnp.asarray(rng.standard_normal(shape), FLOAT) for _ in range(2))
    phases = Phases(stencil, shape)
    for reverse in (False, True):
        swept = phases.sweeper(jnp.ones((), FLOAT))(phases.pack(z), phases.pack(r), reverse=reverse)
        one = by_colours(stencil, shape)(z, r, reverse)
        np.testing.assert_allclose(one, phases.unpack(swept), rtol=1e-4, atol=1e-5)


@needs_x64
@pytest.mark.long
def test_coefficients_made_in_the_program_that_uses_them():
    """Inside a differentiated program one accelerator's compiler fused them into their classes, and got others."""
    rng = np.random.default_rng(20)
    k, b = jnp.asarray(0.5 + rng.random((4, 5))), jnp.asarray(rng.standard_normal((4, 5)))

    def matrix(t):
        return Stencil.diffusion(k + t * jnp.sin(9 * k), shift=0.5)

    def dense(t):
        columns = jax.vmap(matrix(t).mv)(jnp.eye(20).reshape(20, 4, 5)).reshape(20, 20)
        return jnp.sum(jnp.sin(jnp.linalg.solve(columns.T, b.ravel())))

    swept = jax.jit(jax.value_and_grad(lambda t: jnp.sum(jnp.sin(sor(matrix(t), b, omega=1.4, tol=1e-13).value))))
    for found, exact in zip(swept(0.0), jax.value_and_grad(dense)(0.0), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-9)


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0), (0.0, np.nan)])
def test_chebyshev_bounds_must_be_an_interval(bounds):
    with pytest.raises(ValueError, match="`high`"):
        ChebCB(*bounds)


def test_thompson_regression_starts_from_zero():
    """With a context of one number the features can be counted; otherwise the message says what is missing."""
    learner = ThompsonRegression(lambda context, arms: jnp.stack([arms * 1.0, context * arms, arms**2.0], 1))
    state = learner.init(jnp.asarray([1.0, 2.0], jnp.result_type(float)))
    np.testing.assert_array_equal(state.mean, np.zeros(3))
    pull = learner.select(state, jnp.asarray(0.5, state.mean.dtype), jax.random.key(3))
    assert 0 <= int(pull.arm) < 2
    with pytest.raises(ValueError, match=r"ThompsonRegression: `mean`"):
        ThompsonRegression(lambda context, arms: context[:, None] * arms[None]).init(3)


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ([0, -1], [0, 1], r"`row` must be indices from 0 upwards, got -1 at entry 1"),
        ([0, 1], [0, -3], r"`column` must be indices from 0 upwards, got -3 at entry 1"),
        ([0, 9], [0, 1], r"`row` must be below the number of rows"),
        ([0, 1, 1], [0, 2, 0], r"none in row 1"),
    ],
)
def test_sparse_patterns_say_what_is_wrong(row, column, message):
    with pytest.raises(ValueError, match=message):
        SparseRows(np.ones(len(row)), row, column)


def test_no_system_is_an_error():
    with pytest.raises(ValueError, match="`rhs` must be of at least one system"):
        solve_sequence(
            np.zeros((0, 2, 2)), np.zeros((0, 2)), learner=TsallisINF(), arms=Arms.sor(2), key=jax.random.key(3)
        )


def test_a_scipy_matrix_is_told_its_way_in():
    matrix = scipy.sparse.eye(5).tocsr()
    with pytest.raises(TypeError, match=r"SparseRows.from_scipy\(A\)"):
        solvers.ssor_cg(matrix, jnp.ones(5, FLOAT), omega=1.0)
    with pytest.raises(TypeError, match=r"AMG\(A\)"):
        multigrid_cg(matrix, jnp.ones(5, FLOAT))


GRID = Stencil.diffusion(jnp.asarray(np.exp(np.random.default_rng(34).standard_normal((9, 8))), FLOAT), shift=0.5)
ROWS = GRID.rows((9, 8))
MATRIX = scipy.sparse.coo_matrix((np.asarray(ROWS.values), ROWS.places())).tocsr()
DENSE = jnp.asarray(MATRIX.toarray(), FLOAT)
FAR = 2.0**500 if X64 else 2.0**100
FREE = MatrixFree(lambda x, a: matmul(a, x), args=DENSE)

EVERYWHERE = {
    "sor": lambda s, b, x0: solvers.sor(GRID.times(s), b, omega=1.3, x0=x0),
    "ssor_cg": lambda s, b, x0: solvers.ssor_cg(ROWS.times(s), b.ravel(), x0=x0.ravel()),
    "chebyshev_cg": lambda s, b, x0: solvers.chebyshev_cg(s * DENSE, b.ravel(), x0=x0.ravel()),
    "matrix-free": lambda s, b, x0: solvers.chebyshev_cg(
        MatrixFree(FREE.function, args=s * DENSE), b.ravel(), x0=x0.ravel()
    ),
    "flexible_cg": lambda s, b, x0: solvers.flexible_cg(
        GRID.times(s), b, precondition=lambda r, d: r / d, args=GRID.times(s).diagonal(), x0=x0
    ),
    "multigrid_cg": lambda s, b, x0: multigrid_cg(GRID.times(s), b, x0=x0),
    "multigrid_gmres": lambda s, b, x0: solvers.multigrid_gmres(GRID.times(s), b, x0=x0),
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_scales_change_no_bit(name):
    """A and b times powers of two, each alone and both: statuses, steps, errors, and all bits of the answer."""
    b, x0 = (jnp.asarray(x, FLOAT) for x in np.random.default_rng(35).standard_normal((2, 9, 8)))

    @jax.jit
    def solved(s, t):
        x0_here = x0 * jnp.where(s > 1, 1 / s, 1) * jnp.where(t > 1, t, 1) * jnp.where(s < 1, 1 / s, 1)
        return EVERYWHERE[name](s, t * b, x0_here * jnp.where(t < 1, t, 1))

    plain = solved(jnp.ones((), FLOAT), jnp.ones((), FLOAT))
    assert plain.converged
    for s, t in [(FAR, 1), (1 / FAR, 1), (1, FAR), (1, 1 / FAR), (FAR, FAR), (1 / FAR, 1 / FAR)]:
        other = solved(jnp.asarray(s, FLOAT), jnp.asarray(t, FLOAT))
        same = np.asarray(other.value, np.float64) * (s / t)
        if name == "matrix-free":  # what happens inside is the user's
            assert other.converged
            np.testing.assert_allclose(same, plain.value, rtol=1e-4, atol=1e-5)
            continue
        np.testing.assert_array_equal(same, plain.value)
        assert (other.status, other.num_steps, other.error) == (plain.status, plain.num_steps, plain.error)


@pytest.mark.parametrize("far", [FAR, 1 / FAR])
def test_derivatives_at_far_scales(far):
    """Of ``w'x`` in A, ``-A^-1 w x'``, and in b, ``A^-1 w``, against NumPy in units of one."""
    b, w = (jnp.asarray(x, FLOAT) for x in np.random.default_rng(36).standard_normal((2, 72)))
    of_matrix, of_b = jax.jit(jax.grad(lambda A, b: w @ solvers.chebyshev_cg(A, b).value, (0, 1)))(far * DENSE, far * b)
    x, z = (np.linalg.solve(np.asarray(DENSE, float), np.asarray(v, float)) for v in (b, w))
    close = {"rtol": 1e-5, "atol": 1e-6} if X64 else {"rtol": 1e-2, "atol": 1e-3}
    np.testing.assert_allclose(np.asarray(of_b, float) * far, z, **close)
    np.testing.assert_allclose(np.asarray(of_matrix, float) * far, -np.outer(z, x), **close)


@pytest.mark.parametrize(
    "kind", [pytest.param("smoothed_aggregation", marks=pytest.mark.long), "ruge_stuben", "rootnode"]
)
def test_hierarchies_at_far_scales(kind):
    """PyAMG takes denominators below 1e-15 for zero; rootnode and single precision need a matrix in double."""
    b, steps = np.random.default_rng(37).standard_normal(72).astype(FLOAT), []
    for s in (1, FAR, 1 / FAR):
        system = AMG((MATRIX * FLOAT.type(s)).astype(FLOAT), kind=kind, max_coarse=15)
        assert np.all(np.isfinite(system.inverse))
        solution = compiled.multigrid_cg(system, jnp.asarray(b))
        assert solution.converged
        steps.append(int(solution.num_steps))
        x = np.asarray(solution.value, float) * s
        assert np.linalg.norm(b - MATRIX @ x) <= 1.5 * float(solution.tol) * np.linalg.norm(b)
    assert max(steps) <= min(steps) + 2


@pytest.mark.long
def test_a_sequence_at_a_far_scale_learns_the_same():
    systems, rhs = jnp.stack([DENSE, 2 * DENSE]), jnp.ones((2, 72), FLOAT)

    @jax.jit
    def played(s):
        learner, key = TsallisINF(), jax.random.key(6)
        return solve_sequence(s * systems, s * rhs, learner=learner, arms=Arms.sor(2), key=key)

    plain, far = played(jnp.ones((), FLOAT)), played(jnp.asarray(FAR, FLOAT))
    assert np.all(np.isfinite(plain.costs))
    for one, other in ((plain.costs, far.costs), (plain.value, far.value), (plain.arms, far.arms)):
        np.testing.assert_array_equal(one, other)


def graph(n=9, shift=0.0):
    """Return the Laplacian of a grid with random weights, singular without a shift, and a right-hand side."""
    rng = np.random.default_rng(38)
    line = scipy.sparse.diags([np.ones(n - 1)], [1])
    pairs = scipy.sparse.triu(scipy.sparse.kronsum(line, line)).tocoo()
    weights = np.exp(rng.standard_normal(pairs.nnz))
    half = scipy.sparse.coo_matrix((weights, (pairs.row, pairs.col)), (n * n, n * n))
    both = (half + half.T).tocsr()
    degrees = np.asarray(both.sum(1)).ravel()
    return (scipy.sparse.diags(degrees + shift) - both).tocsr().astype(FLOAT), rng.standard_normal(n * n)


MANY, ONE = (jnp.asarray(k, jnp.int32) for k in (3000, 1))
WAYS = [
    lambda A, b, **more: compiled.multigrid_cg(AMG(A, max_coarse=15), b, **more),
    lambda A, b, **more: chebyshev_cg(jnp.asarray(A.toarray()), b, **more),
    lambda A, b, **more: sor(SparseRows.from_scipy(A), b, omega=1.5, **more),
]


@pytest.mark.parametrize("solve", WAYS, ids=["multigrid_cg", "chebyshev_cg", "sor"])
def test_a_mean_that_no_solution_has(solve):
    """No x brings the error below ``|sum b| / (sqrt(n) ||b||)``; without its mean b is solved for."""
    A, b = graph()
    least = abs(b.sum()) / (9 * np.linalg.norm(b))
    assert least > 0.01
    lost = solve(A, jnp.asarray(b, FLOAT), max_steps=MANY)
    assert lost.status == LinearStatus.INCOMPATIBLE
    assert least * 0.999 <= lost.error <= 1.001
    assert "take the mean off `b`" in lost.message
    rest = jnp.asarray(b - b.mean(), FLOAT)
    solution = solve(A, rest, max_steps=MANY)
    assert solution.converged
    assert np.linalg.norm(A @ np.asarray(solution.value, float) - rest) <= 2e-3 * np.linalg.norm(rest)
    assert solve(A, rest, max_steps=ONE).status == Status.MAX_STEPS
    if solve is not WAYS[0]:  # where another matrix is another program
        regular, _ = graph(shift=0.01)
        assert solve(regular, jnp.asarray(b, FLOAT), max_steps=ONE).status == Status.MAX_STEPS
