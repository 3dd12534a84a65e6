"""Unknown coefficients that vary: found, with intervals that hold the truth as often as they say; movies of heat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.pde import Box, Dirichlet, Observe, PDEProblem, PDEStatus, RandomField, SquaredExponential, gp_solve

from ..conftest import FLOAT, X64, needs_x64

SQUARE = Box((0.0, 1.0), (0.0, 1.0))
S = jnp.asarray(np.linspace(0.05, 0.95, 7), FLOAT)


def field(rank=6):
    return RandomField(SQUARE, SquaredExponential(0.4, 0.25), rank=rank)


def flow(x, u, a):
    """``div(exp(a) grad u) = -20 exp(a) sin sin``, divided by ``exp(a)``."""
    load = 20 * jnp.sin(np.pi * x[0]) * jnp.sin(np.pi * x[1])
    return u.dxx + u.dyy + a(x, (1, 0)) * u.dx + a(x, (0, 1)) * u.dy + jnp.exp(-a(x)) * load


@pytest.mark.long
def test_a_field_has_the_covariance_of_its_prior():
    prior = field(rank=10)
    points = jnp.asarray(np.random.default_rng(3).random((6, 2)), FLOAT)
    flat = jnp.eye(100, dtype=FLOAT).reshape(100, 10, 10)
    rows = jax.jit(jax.vmap(lambda w: RandomField.__call__(_with(prior, w), points)))(flat)
    gaps = points[:, None] - points[None]
    kernel = 0.25**2 * jnp.exp(-jnp.sum(gaps**2, -1) / (2 * 0.4**2))  # a product of two, each of variance 0.25
    np.testing.assert_allclose(rows.T @ rows, kernel, atol=2e-5 if X64 else 1e-4)


def _with(prior, weights):
    import equinox as eqx

    return eqx.tree_at(lambda f: f.weights, prior, weights)


@pytest.mark.long
def test_points_equal_the_grid_and_derivatives_the_differences():
    drawn = field().drawn(jax.random.key(7))
    points = jnp.stack(jnp.meshgrid(S, S, indexing="ij"), -1)
    np.testing.assert_allclose(drawn(points), drawn((S, S)), atol=1e-12 if X64 else 1e-5)
    h = 1e-4 if X64 else 1e-2
    step = jnp.asarray([[[h, 0.0]]], FLOAT)
    slope = (drawn(points + step) - drawn(points - step)) / (2 * h)
    np.testing.assert_allclose(drawn((S, S), (1, 0)), slope, atol=1e-5 if X64 else 2e-2)


def observed(points, values, noise, grid, rank=6):
    problem = PDEProblem(flow, SQUARE, [Dirichlet("all"), Observe(points, values, noise)])
    return gp_solve(problem, grid=grid, args=field(rank), infer=1.0)


@pytest.mark.long
def test_a_diffusivity_is_found_in_two_dimensions():
    """Sixty data of a solution computed on a finer grid: the field within its intervals, which are narrower by far."""
    drawn = field().drawn(jax.random.key(7))
    points = jnp.asarray(np.random.default_rng(5).random((60, 2)), FLOAT)
    forward = gp_solve(PDEProblem(flow, SQUARE, [Dirichlet("all")]), grid=(20, 20), args=drawn)
    values = forward.mean(points) + 0.01 * jax.random.normal(jax.random.key(8), (60,), FLOAT)
    solution = observed(points, values, jnp.asarray(0.01, FLOAT), (14, 14))
    functions = (lambda a: a((S, S)), lambda a: a((S, S), (0, 1)), lambda a: jnp.exp(a((S, S))), lambda a: a.weights)
    (found, spread), (slope, wide), scaled, numbers = jax.jit(lambda s: [s.of_args(f) for f in functions])(solution)
    gap = jnp.abs(found - drawn((S, S)))
    assert bool(solution.converged)
    assert float(jnp.mean(gap <= 1.96 * spread)) > 0.85
    assert float(jnp.sqrt(jnp.mean(gap**2))) < 0.5 * float(jnp.std(drawn((S, S))))
    assert float(jnp.mean(spread)) < 0.15  # 0.25 before
    # A derivative of the field, and what its exponential is: the delta method of both.
    assert float(jnp.mean(jnp.abs(slope - drawn((S, S), (0, 1))) <= 1.96 * wide)) > 0.8
    np.testing.assert_allclose(scaled[1], jnp.exp(found) * spread, rtol=1e-3)
    # The numbers themselves, found in the posterior beside whatever else is uncertain there.
    np.testing.assert_allclose(numbers[1], solution.args_std.weights, rtol=1e-3)


@needs_x64
@pytest.mark.slow
def test_intervals_of_a_field_cover_draws_from_its_prior():
    """Two hundred fields, each with its data; the points of one are not independent, hence the wider band."""
    points = jnp.asarray(np.random.default_rng(5).random((60, 2)))

    def one(key):
        of_field, of_noise = jax.random.split(key)
        drawn = field().drawn(of_field)
        forward = gp_solve(PDEProblem(flow, SQUARE, [Dirichlet("all")]), grid=(20, 20), args=drawn)
        values = forward.mean(points) + 0.02 * jax.random.normal(of_noise, (60,))
        solution = observed(points, values, 0.02, (14, 14))
        found, spread = solution.of_args(lambda a: a((S, S)))
        return jnp.abs(found - drawn((S, S))) <= 1.96 * spread, solution.status

    inside, status = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(11), 200))
    assert float(jnp.mean(status == 0)) > 0.97
    assert 0.93 <= float(jnp.mean(inside[status == 0])) <= 0.97


@pytest.mark.long
def test_a_field_that_no_datum_sees_is_called_so():
    """The equation multiplies it by zero."""
    unknown = RandomField(Box((0.0, 1.0)), SquaredExponential(0.4), rank=3)
    datum = Observe(np.full(1, 0.5, FLOAT), np.full(1, -0.12, FLOAT), 0.01)
    problem = PDEProblem(lambda x, u, a: u.dxx + 0 * a(x) - 1, Box((0.0, 1.0)), [Dirichlet("all"), datum])
    solution = gp_solve(problem, grid=14, args=unknown, infer=1.0)
    assert int(solution.status) == PDEStatus.UNIDENTIFIED


@needs_x64
@pytest.mark.slow
def test_conductivity_from_a_movie():
    """Sixteen noisy frames of twenty-five pixels, the first one noisy as well: a rod whose conductivity varies."""
    rng = np.random.default_rng(9)
    rod = Box(x=(0.0, 1.0), t=(0.0, 0.5))
    prior = RandomField(rod, SquaredExponential(0.3, 0.25), mean=-1.5, over="x", rank=8)
    drawn = prior.drawn(jax.random.key(3))

    def heat(x, u, a):
        return u.dt - jnp.exp(a(x)) * (u.dxx + a(x, (1, 0)) * u.dx)

    def initial(x):
        return jnp.sin(np.pi * x) ** 3 * (1 + x)

    walls = [Dirichlet("x-"), Dirichlet("x+")]
    forward = gp_solve(PDEProblem(heat, rod, [*walls, Dirichlet("t-", lambda x, a: initial(x[0]))]), grid=(30, 30),
                       args=drawn)  # fmt: skip
    pixels, frames = jnp.linspace(0.02, 0.98, 25), jnp.linspace(0.02, 0.5, 16)
    points = jnp.stack(jnp.meshgrid(pixels, frames, indexing="ij"), -1).reshape(-1, 2)
    movie = forward.mean((pixels, frames)).reshape(-1) + 0.02 * rng.standard_normal(400)
    first = initial(np.polynomial.legendre.leggauss(20)[0] / 2 + 0.5) + 0.02 * rng.standard_normal(20)
    problem = PDEProblem(heat, rod, [*walls, Dirichlet("t-", first, noise=0.02), Observe(points, movie, 0.02)])
    solution = gp_solve(problem, grid=(20, 34), args=prior, infer=1.0)
    at = jnp.linspace(0.05, 0.95, 13)
    found, spread = solution.of_args(lambda a: a((at, jnp.zeros(1)))[:, 0])
    gap = jnp.abs(found - drawn((at, jnp.zeros(1)))[:, 0])
    assert bool(solution.converged)
    assert float(jnp.max(gap / spread)) < 3
    assert float(jnp.max(spread)) < 0.25  # 0.5 before
    assert solution.args_std.factors == (None,)


@pytest.mark.long
def test_some_args_known_and_others_not():
    """``u'' + k u = f`` with k known and f not: None in `infer` says which."""
    seen = np.array([0.25, 0.5, 0.8], FLOAT)
    problem = PDEProblem(lambda x, u, a: u.dxx + a["k"] * u.v - a["f"], Box((0.0, 1.0)),
                         [Dirichlet("all"), Observe(seen, np.array([-0.2, -0.27, -0.17], FLOAT), 0.01)])  # fmt: skip
    args = {"k": jnp.asarray(1.0, FLOAT), "f": jnp.asarray(0.0, FLOAT)}
    solution = gp_solve(problem, grid=14, args=args, infer={"k": None, "f": 10.0})
    green = -(1 - np.cos(seen) - (1 - np.cos(1)) / np.sin(1) * np.sin(seen)) * -1  # u for f = 1
    weight = green / 0.01
    expected = weight @ (np.array([-0.2, -0.27, -0.17]) / 0.01) / (weight @ weight + 1e-2)
    assert bool(solution.converged)
    np.testing.assert_allclose(float(solution.args["f"]), expected, rtol=1e-6 if X64 else 1e-3)
    assert float(solution.args["k"]) == 1
    assert solution.args_std["k"] is None
    with pytest.raises(ValueError, match="gp_solve: `infer` must be like `args`"):
        gp_solve(problem, grid=14, args=args, infer={"k": 1.0})


@pytest.mark.parametrize("options", [{"over": "t"}, {"over": "yx"}, {"rank": 0}])
def test_a_field_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="RandomField"):
        RandomField(SQUARE, SquaredExponential(0.4), **options)
