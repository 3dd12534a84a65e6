"""Algebraic multigrid against SciPy and dense solves, new values at a fixed pattern, unsymmetric systems."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from solvers import AMG, Arms, LinearStatus, SparseRows, Status, Stencil, multigrid_cg, multigrid_gmres, solve_sequence
from solvers.linear.cycles import host, sparse
from solvers.linear.cycles.host import smoothed, without_small
from solvers.linear.cycles.sparse import times_matrix, times_vector

from ..compiled import sor
from ..conftest import FLOAT, X64, needs_x64

pyamg = pytest.importorskip("pyamg")

CLOSE = 1e-10 if X64 else 2e-4
TOL = 1e-8 if X64 else 1e-5
RNG = np.random.default_rng(53)


def mesh_laplacian(n, seed=59):
    """Return the weighted Laplacian of a Delaunay triangulation of n random points, plus a small multiple of one."""
    from scipy.spatial import Delaunay

    rng = np.random.default_rng(seed)
    triangles = Delaunay(rng.random((n, 2))).simplices
    edges = np.unique(np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1), axis=0)
    weights = np.exp(rng.standard_normal(len(edges)))
    graph = sp.coo_matrix((weights, edges.T), (n, n))
    graph = graph + graph.T
    return (sp.diags(np.asarray(graph.sum(1)).ravel() + 0.01) - graph).tocsr()


MESH = mesh_laplacian(300)
DENSE = MESH.toarray()
B = RNG.standard_normal(300)
SYSTEM = AMG(MESH.astype(FLOAT), updates=True, max_coarse=20)
solve = jax.jit(lambda A, b: multigrid_cg(A, b, tol=TOL))
product_of = jax.jit(lambda sums, a, b: sums.apply(sums.gather(a), b))


def relative(A, x, b):
    return np.linalg.norm(b - A @ np.asarray(x, float)) / np.linalg.norm(b)


def interpolations(system):
    """Return the interpolations as matrices: what they make of the columns of the identity."""
    size, *sizes = system.levels_of_unknowns
    layout = system.layout((size,), sweeps=False)
    return [
        np.asarray(jax.vmap(x.prolong, out_axes=-1)(jnp.eye(n, dtype=FLOAT)), float)
        for x, n in zip(layout.levels, sizes, strict=True)
    ]


def test_sums_are_products():
    """Rows of very different lengths, empty ones too, both ways, and matrix times matrix."""
    a = sp.random(60, 50, 0.1, random_state=3, format="csr")
    a = sp.vstack([a, sp.csr_matrix(np.r_[RNG.random((1, 50)), np.zeros((1, 50))])]).tocsr()
    b = sp.random(50, 40, 0.2, random_state=5, format="csr")
    data, x, y = jnp.asarray(a.data, FLOAT), RNG.standard_normal(50), RNG.standard_normal(62)
    for sums, vector, expected in (
        (times_vector(a), x, a @ x),
        (times_vector(a, transposed=True), y, a.T @ y),
    ):
        found = product_of(sums, data, jnp.asarray(vector, FLOAT))
        np.testing.assert_allclose(found, expected, atol=CLOSE)
    for left, right, flip in ((a, b, False), (a, a, True)):
        product = ((left.T if flip else left) @ right).tocsr()
        product.sort_indices()
        sums = times_matrix(left, right, product, transposed=flip)
        found = product_of(sums, jnp.asarray(left.data, FLOAT), jnp.asarray(right.data, FLOAT))
        np.testing.assert_allclose(found, product.data, atol=CLOSE)


@pytest.mark.parametrize("kind", ["smoothed_aggregation", "ruge_stuben"])
def test_a_mesh_takes_few_steps(kind):
    system = SYSTEM if kind == "smoothed_aggregation" else AMG(MESH.astype(FLOAT), kind=kind, max_coarse=20)
    assert len(system.levels_of_unknowns) > 1
    assert system.levels_of_unknowns[-1] <= 40
    solution = solve(system, jnp.asarray(B, FLOAT))
    assert solution.converged
    assert solution.num_steps <= 14
    assert relative(DENSE, solution.value, B) <= 2 * TOL + (0 if X64 else 1e-4)


def rotated(n, angle, kind="FE", epsilon=1e-3):
    """Return diffusion a thousand times stronger along a direction that is none of the grid's."""
    stencil = pyamg.gallery.diffusion_stencil_2d(epsilon=epsilon, theta=angle, type=kind)
    return pyamg.gallery.stencil_grid(stencil, (n, n), format="csr").tocsr()


def diffusion(k):
    """Return diffusion with this coefficient in every cell of a grid."""
    rows = Stencil.diffusion(jnp.asarray(k), shift=0).rows(k.shape)
    return sp.coo_matrix((np.asarray(rows.values, float), rows.places()), (k.size,) * 2).tocsr()


def islands(n):
    """Return diffusion whose coefficient jumps by up to a million from every point to the next."""
    return diffusion(10 ** np.random.default_rng(61).uniform(-3, 3, (n, n)))


def two_materials(n):
    """Return diffusion through a fine random mixture of two materials, one a million times the other."""
    return diffusion(np.where(np.random.default_rng(67).random((n, n)) < 0.5, 1, 1e6))


def test_small_weights_go_and_sums_stay():
    """Against rows written out, an empty one and one whose large weights cancel among them."""
    dense = np.array([[0.6, 0.38, 0.02, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, -1, 0.04, 0], [0.2, 0.011, 0.2, 0.2]])
    found = without_small(sp.csr_matrix(dense)).toarray()
    expected = np.where(np.abs(dense) >= 0.05 * np.abs(dense).max(1, keepdims=True), dense, 0)
    expected[0] *= 1 / 0.98
    np.testing.assert_allclose(found, expected, atol=1e-15)


def test_products_shared_among_threads_are_the_products(monkeypatch):
    """Blocks of rows, empty ones among them, against SciPy's product in one piece."""
    left, right = (sp.random_array(s, density=0.02, rng=RNG, format="csr") for s in ((200, 300), (300, 80)))
    left.data[left.indptr[50] : left.indptr[120]] = 0
    left.eliminate_zeros()
    monkeypatch.setattr(host, "MANY_ENTRIES", 1)
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    found = host.product(sp.csr_matrix(left), sp.csr_matrix(right))
    np.testing.assert_allclose(found.toarray(), left.toarray() @ right.toarray(), rtol=1e-14, atol=1e-300)


def test_jacobi_sweeps_improve_interpolation():
    """Towards ideal interpolation, which a dense solve gives; coarse unknowns keep their own values."""
    A = rotated(9, 0.5)
    level = pyamg.ruge_stuben_solver(A, max_levels=2).levels[0]
    fine, P = ~level.splitting, sp.csr_matrix(level.P)
    ideal = -np.linalg.solve(A[fine][:, fine].toarray(), A[fine][:, ~fine].toarray())
    gaps = []
    for sweeps in (0, 1, 2):
        better = smoothed(A, P, fine, sweeps).toarray()
        np.testing.assert_array_equal(better[~fine], np.eye(better.shape[1]))
        gaps.append(np.linalg.norm(better[fine] - ideal))
    assert gaps[2] < gaps[1] < gaps[0]


@pytest.mark.parametrize("make", [lambda: rotated(20, np.pi / 6), lambda: islands(20)], ids=["rotated", "islands"])
def test_a_hard_system_takes_few_steps(make):
    """Where smoothed aggregation takes several times as many or never ends."""
    A, b = make(), RNG.standard_normal(400)
    system = AMG(A.astype(FLOAT), kind="ruge_stuben", improve=3, max_coarse=60)
    assert len(system.levels_of_unknowns) > 2
    tol = TOL if X64 else 1e-3
    solution = solve(system, jnp.asarray(b, FLOAT)) if X64 else multigrid_cg(system, jnp.asarray(b, FLOAT), tol=tol)
    assert solution.converged
    assert solution.num_steps <= 12
    assert relative(A, solution.value, b) <= 2 * tol


@pytest.mark.slow
@needs_x64
@pytest.mark.parametrize(
    "make",
    [
        *(lambda k=k, a=a: rotated(96, a, k) for k in ("FE", "FD") for a in (0.3, np.pi / 6, np.pi / 4)),
        lambda: islands(96),
        lambda: two_materials(96),
    ],
)
def test_at_most_twelve_cycles_anywhere(make):
    """At every angle, and for jumps of a million from point to point, with the default cycle."""
    A = make()
    b = RNG.standard_normal(A.shape[0])
    solution = solve(AMG(A, kind="ruge_stuben", improve=3), jnp.asarray(b))
    assert solution.converged
    assert solution.num_steps <= 12
    assert relative(A, solution.value, b) <= 2 * TOL


@pytest.mark.long
def test_elasticity_with_its_rigid_motions():
    """Blocks of two unknowns a point; without the motions smoothed aggregation takes far longer."""
    A, motions = pyamg.gallery.linear_elasticity((14, 14), format="bsr")
    b = RNG.standard_normal(A.shape[0])
    solver = pyamg.smoothed_aggregation_solver(A, B=motions, max_coarse=20)
    with_motions = multigrid_cg(AMG.from_pyamg(solver), jnp.asarray(b, FLOAT), degree=3, ratio=8.0, tol=TOL)
    assert with_motions.converged
    assert with_motions.num_steps <= 20
    assert relative(A, with_motions.value, b) <= 2 * TOL + (0 if X64 else 1e-3)


@pytest.mark.long
def test_entries_in_any_order_and_twice():
    """A SparseRows with a duplicate and shuffled entries is the same system."""
    coo = MESH.tocoo()
    order = RNG.permutation(coo.nnz + 1)
    row, column, data = np.r_[coo.row, 3][order], np.r_[coo.col, 3][order], np.r_[coo.data, 0.5][order]
    rows = SparseRows(jnp.asarray(data, FLOAT), row, column)
    np.testing.assert_array_equal(rows.places(), (row, column))
    system, expected = AMG(rows, max_coarse=20), DENSE.copy()
    expected[3, 3] += 0.5
    np.testing.assert_allclose(system.mv(jnp.asarray(B, FLOAT)), expected @ B, rtol=1e-4, atol=1e-4)
    whole = AMG(sp.csr_matrix(np.round(10 * expected).astype(int)), max_coarse=20)
    assert all(x.dtype == FLOAT for x in (whole.values, *whole.data, *whole.weights, whole.inverse))
    assert relative(expected, solve(system, jnp.asarray(B, FLOAT)).value, B) <= 1e-4


@pytest.mark.long
def test_new_values_get_new_coarse_matrices():
    """In one program, equal to SciPy's products with the interpolations kept."""
    data = MESH.data * np.exp(0.3 * RNG.random())
    data[MESH.indices == np.repeat(np.arange(300), np.diff(MESH.indptr))] += 0.5
    fresh = jax.jit(lambda v: SYSTEM.with_values(v))(jnp.asarray(data, FLOAT))
    fine = sp.csr_matrix((data, MESH.indices, MESH.indptr))
    for found, P in zip((*fresh.data[1:], None), interpolations(SYSTEM), strict=True):
        fine = sp.csr_matrix(sp.csr_matrix(P).T @ fine @ sp.csr_matrix(P))
        if found is not None:
            fine.sort_indices()
            np.testing.assert_allclose(found, fine.data, rtol=1e-3, atol=CLOSE * abs(fine).max())
    np.testing.assert_allclose(np.linalg.inv(fine.toarray()), fresh.inverse, rtol=1e-3, atol=1e-3)
    solution = solve(fresh, jnp.asarray(B, FLOAT))
    assert solution.converged
    assert solution.num_steps <= 14
    with pytest.raises(ValueError, match="`updates`"):
        AMG(MESH, max_coarse=20).with_values(MESH.data)


@pytest.mark.parametrize("improve", [0, 1])
def test_new_values_where_old_ones_cancelled(improve):
    """On a line A P has zeros at fine points, which SciPy leaves out of its products; other values have none there.

    The line is closed at both ends, so that the coarsest matrix is singular for the old values.
    """
    line = sp.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(60, 60)).tolil()
    line[0, 0] = line[59, 59] = 1
    line = line.tocsr()
    system = AMG(line.astype(FLOAT), kind="ruge_stuben", improve=improve, updates=True, max_coarse=12)
    row = np.repeat(np.arange(60), np.diff(line.indptr))
    fine = sp.csr_array((line.data + (row == line.indices) * (0.1 + RNG.random(60))[row], line.indices, line.indptr))
    fresh = jax.jit(lambda v: system.with_values(v))(jnp.asarray(fine.data, FLOAT))
    dense = fine.toarray()
    for P in interpolations(system):
        dense = P.T @ dense @ P
    np.testing.assert_allclose(fresh.inverse, np.linalg.inv(dense), rtol=1e-3, atol=CLOSE)
    assert np.abs(system.inverse).max() < 100


FEW = mesh_laplacian(60)
SMALL = AMG(FEW.astype(FLOAT), updates=True, max_coarse=20)


@pytest.fixture
def several_tables(monkeypatch):
    """Let rows of small matrices go into tables by their length, as those of large ones do."""
    monkeypatch.setattr(sparse, "FEW_ENTRIES", 0)
    monkeypatch.setattr(sparse, "SPREAD", 1.2)


@pytest.mark.long
def test_unknowns_in_the_order_of_the_tables(several_tables):
    """Products, solutions and derivatives do not show in which order the hierarchy keeps its unknowns."""
    system = AMG(FEW.astype(FLOAT), max_coarse=20)
    assert system.order is not None
    assert SMALL.order is None
    assert system.product.place is None
    b = jnp.asarray(B[:60], FLOAT)
    np.testing.assert_allclose(system.mv(b), FEW @ B[:60], atol=CLOSE)
    layout = system.layout((60,), sweeps=False)
    np.testing.assert_allclose(layout.unpack(layout.diagonal()), FEW.diagonal(), rtol=1e-6)

    @jax.jit
    def found(values):
        solution = multigrid_cg(eqx.tree_at(lambda s: s.values, system, values), b, tol=TOL)
        return jnp.sum(jnp.sin(solution.value)), (solution.value, solution.num_steps)

    (_, (x, steps)), slope = jax.value_and_grad(found, has_aux=True)(system.values)
    exact = np.linalg.solve(FEW.toarray(), B[:60])
    back = np.linalg.solve(FEW.toarray(), np.cos(exact))
    row = np.repeat(np.arange(60), np.diff(FEW.indptr))
    assert steps <= 12
    np.testing.assert_allclose(x, exact, rtol=1e-3, atol=1e3 * TOL)
    np.testing.assert_allclose(slope, -back[row] * exact[FEW.indices], rtol=1e-2, atol=1e4 * TOL)


def test_an_unsymmetric_matrix_in_the_order_of_its_tables(several_tables):
    wind = sp.triu(FEW, 1) * 0.3 + sp.diags(np.full(60, 2.0)) + FEW
    system = AMG(wind.tocsr().astype(FLOAT), max_coarse=20)
    assert system.order is not None
    b = jnp.asarray(B[:60], FLOAT)
    np.testing.assert_allclose(system.transposed.mv(b), wind.T @ B[:60], atol=10 * CLOSE)
    solution = jax.jit(lambda s, b: multigrid_gmres(s, b, tol=TOL))(system, b)
    assert solution.converged
    assert solution.num_steps <= 12
    assert relative(wind, solution.value, B[:60]) <= 2 * TOL + (0 if X64 else 1e-5)


@pytest.mark.long
def test_derivatives_in_the_values():
    """Of the solution in the entries, symmetric ones, against a dense solve; and a batch of right-hand sides."""
    b = jnp.asarray(B[:60], FLOAT)

    def ours(t):
        system = SMALL.with_values(SMALL.values * (1 + t))
        return jnp.sum(jnp.sin(multigrid_cg(system, b, tol=TOL / 100 if X64 else TOL).value))

    def exact(t):
        return jnp.sum(jnp.sin(jnp.linalg.solve(jnp.asarray(FEW.toarray(), FLOAT) * (1 + t), b)))

    zero = jnp.zeros((), FLOAT)
    found, expected = (jax.jit(jax.value_and_grad(f))(zero) for f in (ours, exact))
    np.testing.assert_allclose(found, expected, rtol=1e-5 if X64 else 0.05)
    batch = jax.jit(jax.vmap(lambda b: multigrid_cg(SMALL, b, tol=TOL)))(jnp.stack([b, 2 * b, jnp.zeros_like(b)]))
    assert batch.num_steps[0] == batch.num_steps[1] > batch.num_steps[2] == 0
    np.testing.assert_allclose(batch.value[1], 2 * batch.value[0], rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_an_arm_of_a_sequence():
    """New values in every step, all in one program."""

    def step(t, x, args):
        return SMALL.with_values(SMALL.values * (1 + 0.1 * t.astype(FLOAT))), jnp.asarray(B[:60], FLOAT) + x

    solution = solve_sequence(
        step, arms=Arms.multigrid_cg(), key=jax.random.key(3), x0=jnp.zeros(60, FLOAT), num_systems=3,
        tol=max(TOL, 2e-4 if FLOAT == "float32" else 0),  # float32 stagnates at 7e-5 on these
    )  # fmt: skip
    assert bool(solution.converged.all())
    x = np.zeros(60)
    for t in range(3):
        x = np.linalg.solve(FEW.toarray() * (1 + 0.1 * t), B[:60] + x)
    np.testing.assert_allclose(solution.last, x, rtol=1e-3, atol=1e-3 * np.abs(x).max())


def wind(shape, speed):
    """Return upwind convection, with a wind that turns, and diffusion."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    u, v = speed * y, -speed * x
    sides = [1 + np.maximum(-u, 0), 1 + np.maximum(u, 0), 1 + np.maximum(-v, 0), 1 + np.maximum(v, 0)]
    coefficients = np.stack([sum(sides), *(-s for s in sides)])
    return Stencil(jnp.asarray(coefficients, FLOAT), [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])


@pytest.mark.long
def test_convection_and_diffusion():
    """On the grid by the stencil's hierarchy, and its rows by an algebraic one; both transposed for derivatives."""
    shape = (20, 18)
    stencil = wind(shape, 1.0)
    eye = jnp.eye(360, dtype=FLOAT).reshape(360, *shape)
    A = np.asarray(jax.vmap(stencil.mv, out_axes=-1)(eye), float).reshape(360, 360)
    assert np.abs(A - A.T).max() > 0.5
    b = jnp.asarray(RNG.standard_normal(shape), FLOAT)
    algebraic = AMG(sp.csr_matrix(A).astype(FLOAT), kind="ruge_stuben", max_coarse=30)
    for system, rhs in ((stencil, b), (algebraic, b.ravel())):

        def total(rhs, system=system):
            solution = multigrid_gmres(system, rhs, tol=TOL)
            return jnp.sum(solution.value), solution

        slope, solution = jax.jit(jax.grad(total, has_aux=True))(rhs)
        assert solution.converged
        assert solution.num_steps <= 14
        assert relative(A, np.ravel(solution.value), np.ravel(b)) <= 2 * TOL + (0 if X64 else 1e-4)
        np.testing.assert_allclose(np.ravel(slope), np.linalg.solve(A.T, np.ones(360)), rtol=1e-4 if X64 else 1e-2)


def test_restarts_and_failures_say_so():
    """Restarted after two directions; stopped early; a number that is none; a singular system without a solution."""
    stencil, b = wind((9, 8), 1.0), jnp.ones((9, 8), FLOAT)
    run = jax.jit(lambda b, steps: multigrid_gmres(stencil, b, tol=TOL, max_steps=steps, memory=2))
    assert run(b, 100).converged
    assert (int(run(b, 1).status), int(run(b, 1).num_steps)) == (Status.MAX_STEPS, 1)
    assert run(b.at[3, 3].set(jnp.nan), 9).status == Status.NONFINITE
    ring = Stencil(
        jnp.asarray([1.0, -1.0], FLOAT), [(0,), (1,)], periodic=True
    )  # x(i) - x(i + 1) = b, mean of b not zero
    lost = multigrid_gmres(ring, jnp.ones(100, FLOAT), tol=TOL, max_steps=30)
    assert lost.status == LinearStatus.INCOMPATIBLE
    assert 0.9 < lost.error <= 1.01
    k, flow = jnp.linspace(1, 2, 100, dtype=FLOAT), jnp.sin(jnp.linspace(0, 2 * np.pi, 101, dtype=FLOAT)[1:])
    uneven = Stencil(jnp.stack([k, -k]), ring.offsets, periodic=True)  # its rows add up to zero, its columns do not
    assert multigrid_gmres(uneven, k * flow, tol=TOL, max_steps=1).status == Status.MAX_STEPS


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: AMG(MESH, kind="geometric"), ValueError, "`kind`"),
        (lambda: AMG(np.eye(3)), TypeError, r"scipy.sparse.csr_matrix\(A\)"),
        (lambda: AMG(MESH[:5]), ValueError, "square"),
        (lambda: AMG(MESH, improve=2), ValueError, "`improve`"),
        (lambda: AMG(sp.eye(5000).tocsr(), kind="ruge_stuben"), ValueError, "coarsens to"),
        (lambda: AMG(sp.csr_matrix(np.array([[0.0, 1], [1, 1]]))), ValueError, "diagonal entry"),
        (lambda: AMG.from_pyamg(3), TypeError, "MultilevelSolver"),
        (lambda: multigrid_cg(SYSTEM, jnp.ones(3)), ValueError, "one entry a row"),
        (lambda: multigrid_cg(SYSTEM, jnp.ones(300), smoother="red-black"), ValueError, "`smoother`"),
        (lambda: multigrid_gmres(SYSTEM, jnp.ones(300), memory=0), ValueError, "`memory`"),
        (lambda: sor(SYSTEM, jnp.ones(300), omega=1.0), ValueError, "swept"),
    ],
)
def test_bad_input_raises(call, error, says):
    with pytest.raises(error, match=says):
        call()
