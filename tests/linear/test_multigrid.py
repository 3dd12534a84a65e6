"""Multigrid on grids: transfers and coarse operators against dense algebra, counts, boundaries, what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import LinearStatus, Status, Stencil, multigrid_cg
from solvers.linear import coarsening_plan
from solvers.linear.cycles.coarsening import from_operator, full_plan, invert, linear, plan
from solvers.linear.cycles.grids import hierarchy

from ..compiled import sor
from ..conftest import FLOAT, X64

RNG = np.random.default_rng(43)
CLOSE = 1e-12 if X64 else 1e-4
TOL = 1e-8 if X64 else 1e-4


def matrix(stencil, shape):
    """Return the matrix of a stencil: every coefficient times a shifted identity, rolled or cut off by NumPy."""
    n, dims = int(np.prod(shape)), len(shape)
    out = np.zeros((n, n))
    for c, o in zip(np.asarray(stencil.coefficients, float), stencil.offsets, strict=True):
        shifted = np.eye(n).reshape(*shape, n)
        for axis, (k, wraps) in enumerate(zip(o, stencil.periodic, strict=True)):
            shifted = np.roll(shifted, -k, axis)
            if k and not wraps:
                np.moveaxis(shifted, axis, 0)[-1 if k > 0 else 0] = 0
        out += (np.broadcast_to(np.reshape(c, c.shape or (1,) * dims), shape)[..., None] * shifted).reshape(n, n)
    return out


def columns(f, shape):
    """Return the matrix of a linear function of arrays of this shape."""
    n = int(np.prod(shape))
    eye = jnp.eye(n, dtype=FLOAT).reshape(n, *shape)
    return np.asarray(jax.jit(jax.vmap(lambda e: f(e).ravel(), out_axes=-1))(eye), float)


def star(coefficients, dims, periodic=False):
    unit = np.eye(dims, dtype=int)
    return Stencil(
        jnp.asarray(coefficients, FLOAT), [(0,) * dims, *map(tuple, unit), *map(tuple, -unit)], periodic=periodic
    )


def walls(k, shift):
    """Return diffusion with harmonic means at faces and no flux through the boundary, given at the cells."""
    faces = []
    for axis, sign in itertools.product(range(k.ndim), (1, -1)):
        there = np.roll(k, -sign, axis)
        face = 2 / (1 / k + 1 / there)
        np.moveaxis(face, axis, 0)[-1 if sign > 0 else 0] = 0
        faces.append(face)
    faces = [*faces[::2], *faces[1::2]]
    return star(np.stack([sum(faces) + shift, *(-f for f in faces)]), k.ndim)


@pytest.mark.parametrize(
    ("shape", "periodic", "axes"),
    [
        ((15, 12), False, (0, 1)),
        ((20,), False, (0,)),
        ((4, 3, 5), False, (2, 0)),
        ((12, 8), True, (1, 0)),
        ((4, 5), (True, False), (0,)),
        ((15, 3), False, (0, 1)),
        ((4, 7), (True, False), (1, 0)),
    ],
)
@pytest.mark.parametrize("varying", [True, False])
def test_coarse_operators_are_galerkin_products(shape, periodic, axes, varying):
    offsets = list(itertools.product((-1, 0, 1), repeat=len(shape)))
    values = RNG.standard_normal((len(offsets), *(shape if varying else ())))
    stencil = Stencil(jnp.asarray(values, FLOAT), offsets, periodic=periodic)
    plan, sizes = [axes], [shape]
    for _ in range(2):
        sizes.append(tuple(n // 2 if axis in plan[-1] else n for axis, n in enumerate(sizes[-1])))
        plan.append(next((a,) for a, n in enumerate(sizes[-1]) if n > 1 and not (stencil.periodic[a] and n % 2)))
    levels = jax.jit(lambda: hierarchy(stencil, shape, tuple(plan))[0])()
    _, small, smaller = sizes
    P, R = columns(levels[0].prolong, small), columns(levels[0].restrict, shape)
    np.testing.assert_allclose(R, P.T, atol=CLOSE)
    np.testing.assert_allclose(matrix(levels[1].stencil, small), P.T @ matrix(stencil, shape) @ P, atol=20 * CLOSE)
    Q = P @ columns(levels[1].prolong, smaller)
    np.testing.assert_allclose(matrix(levels[2].stencil, smaller), Q.T @ matrix(stencil, shape) @ Q, atol=40 * CLOSE)
    np.testing.assert_allclose(columns(stencil.mv, shape), matrix(stencil, shape), atol=CLOSE)
    np.testing.assert_allclose(columns(stencil.transposed.mv, shape), matrix(stencil, shape).T, atol=CLOSE)


@pytest.mark.parametrize(("coarse", "fine"), [((3,), (7,)), ((3,), (6,)), ((2, 3), (5, 6)), ((1, 2), (3, 2))])
def test_interpolation_is_linear(coarse, fine):
    """Against NumPy's interpolation axis by axis, zero one coarse point beyond either end."""
    z = np.random.default_rng(32).standard_normal(coarse)
    expected, found, shape = z, jnp.asarray(z, FLOAT), list(coarse)
    for axis, (m, n) in enumerate(zip(coarse, fine, strict=True)):
        if m != n:
            line = lambda v, m=m, n=n: np.interp(np.arange(n), 2 * np.arange(-1, m + 1) + 1, np.pad(v, 1))  # noqa: E731
            expected = np.apply_along_axis(line, axis, expected)
            shape[axis] = n
            found = linear(tuple(shape), axis, False, FLOAT).prolong(found)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_in_one_dimension_the_coarse_operator_is_the_schur_complement():
    """Interpolation by the operator eliminates the even points exactly, whatever the jumps."""
    k = 10 ** RNG.uniform(-3, 3, 12)
    stencil = walls(k[:11], 0.1)
    A = matrix(stencil, (11,))
    levels = jax.jit(lambda: hierarchy(stencil, (11,), ((0,), (0,)))[0])()
    coarse = matrix(levels[1].stencil, (5,))
    even, odd = np.arange(0, 11, 2), np.arange(1, 11, 2)
    exact = A[np.ix_(odd, odd)] - A[np.ix_(odd, even)] @ np.linalg.solve(A[np.ix_(even, even)], A[np.ix_(even, odd)])
    np.testing.assert_allclose(coarse, exact, rtol=1e-9 if X64 else 1e-3, atol=CLOSE * np.abs(A).max())


def test_interpolation_keeps_constants_where_there_is_no_flux():
    stencil = walls(np.exp(RNG.standard_normal((6, 9))), 0.0)
    rows = jnp.zeros((3, 3, 6, 9), FLOAT)
    for c, o in zip(stencil.coefficients, stencil.offsets, strict=True):
        rows = rows.at[o[0] + 1, o[1] + 1].set(c)
    step = from_operator(rows, 1, False)
    np.testing.assert_allclose(step.prolong(jnp.ones((6, 4), FLOAT)), 1, rtol=1e-5)


def test_small_inverse_and_that_of_a_singular_matrix():
    small = jax.jit(invert)
    g = RNG.standard_normal((7, 7))
    m = g @ g.T + np.eye(7)
    np.testing.assert_allclose(small(jnp.asarray(m, FLOAT)), np.linalg.inv(m), atol=1e-9 if X64 else 1e-3)
    lap = np.diag([1.0, 2, 2, 2, 2, 2, 1]) - np.diag(np.ones(6), 1) - np.diag(np.ones(6), -1)
    b = np.array([1.0, -2, 3, -2, 1, -4, 3])
    x = small(jnp.asarray(lap, FLOAT)) @ jnp.asarray(b, FLOAT)
    np.testing.assert_allclose(lap @ x, b, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "periodic", "plan"),
    [
        ((9,), False, ()),
        ((800,), False, ((0,), (0,), (0,))),
        ((480,), True, ((0,), (0,))),
        ((7, 10), False, ()),
        ((265, 4), (False, True), ((0, 1), (0,))),
        ((4, 130, 2), False, ((1,),)),
    ],
)
def test_small_grids_of_constant_coefficients_are_solved_exactly(shape, periodic, plan):
    """Against NumPy's inverse of the Galerkin product, where halving has made ends of axes differ and where not."""
    dims = len(shape)
    stencil = star([13.0, *(-1 - np.arange(dims)), *(-1 - np.arange(dims))], dims, periodic)
    levels, solve = jax.jit(lambda: hierarchy(stencil, shape, plan, symmetric=True))()
    assert len(levels) == len(plan)
    A = matrix(stencil, shape)
    for level, axes in zip(levels, plan, strict=True):
        shape = tuple(n // 2 if a in axes else n for a, n in enumerate(shape))
        P = columns(level.prolong, shape)
        A = P.T @ A @ P
    np.testing.assert_allclose(columns(solve, shape), np.linalg.inv(A), atol=CLOSE)


def test_a_singular_grid_is_solved_exactly_where_it_can_be():
    """And what is singular but for a few units of rounding, shift 2^6 eps for a largest eigenvalue of 8, is solved."""
    stencil, b = Stencil.laplacian(2, periodic=True), RNG.standard_normal((6, 5))
    b -= b.mean()
    units = jnp.asarray([64 * np.finfo(FLOAT).eps, 0, 0, 0, 0], FLOAT)

    @jax.jit
    def solve(c, b):
        system = Stencil(c, stencil.offsets, periodic=True)
        return hierarchy(system, (6, 5), (), symmetric=True)[1](b), multigrid_cg(system, b, tol=TOL)

    plain, ones = stencil.coefficients.astype(FLOAT), jnp.ones((6, 5), FLOAT)
    x, _ = solve(plain, jnp.asarray(b, FLOAT))
    np.testing.assert_allclose(matrix(stencil, (6, 5)) @ np.ravel(x), b.ravel(), atol=10 * CLOSE)
    np.testing.assert_allclose(solve(plain, ones)[0], 0, atol=CLOSE)
    x, solution = solve(plain + units, ones)
    np.testing.assert_allclose(x * units[0], 1, rtol=0.01)
    assert solution.status != LinearStatus.INDEFINITE


def test_smooth_errors_of_long_axes_are_not_taken_for_null_vectors():
    """Their eigenvalues are 1e-4 of the largest, in single precision near the rounding of sums over all points."""
    b = jnp.asarray(RNG.standard_normal((100, 90)), FLOAT)
    solution = multigrid_cg(Stencil.laplacian(2, scale=jnp.asarray(1.0, FLOAT)), b, tol=TOL)
    assert solution.converged
    assert solution.num_steps == 1
    if X64:
        far = star([2e6 + 2, -1e6, -1, -1e6, -1], 2, (True, False))
        assert multigrid_cg(far, b, tol=TOL).num_steps <= 3


def test_exact_solves_tell_the_truth():
    """Any scale, NaN lanes, indefinite and unsymmetric numbers, which a factorised solve would not notice."""
    b = jnp.asarray(np.random.default_rng(67).standard_normal((9, 8)), FLOAT)
    plain = np.array([4.3, -1, -1, -1, -1])
    offsets, far = star(plain, 2).offsets, 1e150 if X64 else 1e18
    lanes = [plain, far * plain, plain / far, np.nan * plain, [1.5, *plain[1:]], [4.3, -0.2, -1, -1, -1], -plain]
    solve = jax.jit(jax.vmap(lambda c: multigrid_cg(Stencil(c, offsets), b, tol=TOL)))
    found = solve(jnp.asarray(np.stack(lanes), FLOAT))
    assert found.status.tolist()[:4] == [Status.CONVERGED] * 3 + [Status.NONFINITE]
    indefinite = matrix(Stencil(jnp.asarray(lanes[4], FLOAT), offsets), (9, 8))
    assert np.ravel(b) @ np.linalg.solve(indefinite, np.ravel(b)) < -1  # the first direction has this curvature
    assert found.status[4] == LinearStatus.INDEFINITE
    assert found.status[5] != Status.CONVERGED
    assert found.status[6] == LinearStatus.DIAGONAL
    for k in (0, 4, 5):
        A = matrix(Stencil(jnp.asarray(lanes[k], FLOAT), offsets), (9, 8))
        left = np.ravel(b) - A @ np.ravel(found.value[k])
        np.testing.assert_allclose(np.linalg.norm(left) / np.linalg.norm(b), found.error[k], rtol=1e-2, atol=1e-5)
    A = matrix(star(plain, 2), (9, 8))
    slope = jax.grad(lambda c: jnp.sum(jnp.sin(multigrid_cg(Stencil(c, offsets), b, tol=TOL).value)))(
        jnp.asarray(plain, FLOAT)
    )
    x = np.linalg.solve(A, np.ravel(b))
    parts = [matrix(Stencil(jnp.asarray(e, FLOAT), offsets), (9, 8)) for e in np.eye(5)]
    np.testing.assert_allclose(slope, [-np.linalg.solve(A, np.cos(x)) @ part @ x for part in parts], rtol=1e-3)


def test_plans_halve_strong_axes_first():
    assert full_plan((32, 32), (False, False)) == ((0, 1), (0, 1))
    strong = plan([1.0, 10.0, 100.0], (32, 32, 32), (False,) * 3)
    assert strong[:3] == ((2,), (1, 2), (1, 2))
    assert plan([1.0, 1.0], (12, 7), (True, False))[0] == (0, 1)
    assert plan([1.0], (99,), (True,)) == ()
    shape = (16, 40)
    stencil = walls(np.exp(RNG.standard_normal(shape)), 0.1)
    weights = jnp.asarray([1, 50.0, 1, 50, 1])[:, None, None]
    along = Stencil(stencil.coefficients * weights.astype(FLOAT), stencil.offsets)
    assert coarsening_plan(along, shape)[0] == (0,)
    assert coarsening_plan(stencil, shape)[0] == (0, 1)
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(
            lambda c: (
                multigrid_cg(
                    Stencil(c, along.offsets),
                    jnp.ones(shape),
                    coarsening=coarsening_plan(Stencil(c, along.offsets), shape),
                ).value
            )
        )(along.coefficients)


def judge(stencil, b, solution):
    """Return the residual, relative, by NumPy."""
    A, b = matrix(stencil, b.shape), np.asarray(b, float).ravel()
    return np.linalg.norm(b - A @ np.asarray(solution.value, float).ravel()) / np.linalg.norm(b)


def checkers(shape, size, jump):
    return np.where(np.sum([i // size for i in np.indices(shape)], 0) % 2, jump, 1.0)


SYSTEMS = {
    "three scales": (lambda: star([222.0, -1, -10, -100, -1, -10, -100], 3), (5, 4, 130), 8),
    "two strong axes": (lambda: star([2002.0, -1000, -1, -1000, -1], 2), (140, 10), 8),
    "jumps of a million": (
        lambda: Stencil.diffusion(jnp.asarray(checkers((24, 20), 6, 1e6), FLOAT), shift=0), (24, 20), 14,
    ),
    "walls": (lambda: walls(checkers((24, 20), 5, 100.0), 0.1), (24, 20), 12),
    "mixed derivatives": (
        lambda: Stencil(jnp.asarray([4.0, -1, -1, -1, -1, -0.25, -0.25, 0.25, 0.25], FLOAT),
                        [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)]),
        (24, 20), 10,
    ),
    "periodic": (lambda: Stencil.laplacian(2, shift=jnp.asarray(1e-3, FLOAT), periodic=True), (144, 10), 9),
    "a tube": (lambda: Stencil.laplacian(2, scale=jnp.asarray(1.0, FLOAT), periodic=(True, False)), (144, 10), 9),
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_few_steps_on_hard_systems(name):
    make, shape, most = SYSTEMS[name]
    stencil, b = make(), jnp.asarray(np.random.default_rng(47).standard_normal(shape), FLOAT)
    solution = multigrid_cg(stencil, b, tol=TOL)
    assert solution.converged
    assert solution.num_steps <= most
    assert judge(stencil, b, solution) <= 2 * TOL + (0 if X64 else 1e-3)


def test_singular_systems_are_solved_where_they_can_be():
    """A pure Neumann problem: converged for b without mean, never for one with."""
    stencil, b = walls(np.ones((12, 10)), 0.0), RNG.standard_normal((12, 10))
    solve = jax.jit(lambda b: multigrid_cg(stencil, b, tol=TOL, max_steps=40))
    solution = solve(jnp.asarray(b - b.mean(), FLOAT))
    assert solution.converged
    assert judge(stencil, b - b.mean(), solution) <= 2 * TOL + (0 if X64 else 1e-3)
    impossible = solve(jnp.asarray(b + 1, FLOAT))
    assert impossible.status == LinearStatus.INCOMPATIBLE
    assert 0.1 < impossible.error <= 1.01


def test_the_plan_of_a_traced_system_is_given():
    stencil = star([2002.0, -1000, -1, -1000, -1], 2)
    # a diagonal offset, so that no grid is solved on exactly
    stencil = Stencil(jnp.append(stencil.coefficients, 0), [*stencil.offsets, (1, 1)])
    b = jnp.ones((24, 20), FLOAT)
    steps = jax.jit(
        lambda c, how: multigrid_cg(Stencil(c, stencil.offsets), b, coarsening=how, tol=TOL).num_steps, static_argnums=1
    )
    planned, full = (int(steps(stencil.coefficients, how)) for how in (coarsening_plan(stencil, b.shape), "auto"))
    assert planned == int(multigrid_cg(stencil, b, tol=TOL).num_steps)
    assert full > 2 * planned


def test_sweeps_round_a_torus():
    """Red-black order on a periodic grid, against the same rows as a sparse matrix coloured on the host."""
    stencil, b = (
        Stencil.laplacian(2, shift=jnp.asarray(0.5, FLOAT), periodic=(True, False)),
        RNG.standard_normal((6, 5)),
    )
    b = jnp.asarray(b, FLOAT)
    rows = stencil.rows(b.shape)
    np.testing.assert_allclose(rows.mv(b.ravel()).reshape(b.shape), stencil.mv(b), atol=1e-5)
    found = sor(stencil, b, omega=1.3, tol=1e-5)
    assert found.converged
    np.testing.assert_allclose(found.value.ravel(), np.linalg.solve(matrix(stencil, b.shape), b.ravel()), atol=1e-3)
    with pytest.raises(ValueError, match="even number of points along periodic axes"):
        sor(stencil, jnp.ones((5, 6), FLOAT), omega=1.3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"coarsening": "some"}, "`coarsening`"),
        ({"coarsening": ((0, 0),)}, "distinct axes of 2"),
        ({"coarsening": ((2,),)}, "distinct axes of 2"),
        ({"cycle": "F"}, "`cycle`"),
        ({"smoother": "ilu"}, "'red-black'"),
        ({"degree": 0}, "`degree`"),
    ],
)
def test_bad_settings_raise(settings, says):
    with pytest.raises(ValueError, match=says):
        multigrid_cg(Stencil.laplacian(2), jnp.ones((9, 9)), **settings)


def test_a_grid_that_cannot_be_halved_raises():
    with pytest.raises(ValueError, match="periodic axes while even"):
        multigrid_cg(Stencil.laplacian(2, shift=1.0, periodic=True), jnp.ones((45, 45)))
    with pytest.raises(ValueError, match="`periodic`"):
        Stencil.laplacian(2, periodic=(True,))
