"""Costs that are never stored, against NumPy and against the same problem with the matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from solvers import Grid, PointCloud, sinkhorn, sinkhorn_divergence, sns_sinkhorn
from solvers.transport import DenseCG

from ..conftest import FLOAT, X64, needs_x64

N, M, TILE = 28, 32, 200
NEAR = 1e-10 if X64 else 2e-4


def skewed(p, q):
    return jnp.sum(jnp.abs(p - q) ** 1.5) + 0.1 * p[0]


METRICS = {
    "sqeuclidean": "sqeuclidean",
    "euclidean": "euclidean",
    "manhattan": "cityblock",
    "cosine": "cosine",
    skewed: lambda p, q: (abs(p - q) ** 1.5).sum() + 0.1 * p[0],
}


def points(d=2):
    rng = np.random.default_rng(60)
    return rng.random((N, d)), rng.random((M, d)) + 0.1


def weights():
    rng = np.random.default_rng(61)
    a, b = rng.random(N) + 0.2, rng.random(M) + 0.2
    a[3] = b[7] = 0
    return tuple(jnp.asarray(w / w.sum(), FLOAT) for w in (a, b))


def cloud(metric="sqeuclidean", d=2, tile=TILE):
    return PointCloud(*(jnp.asarray(z, FLOAT) for z in points(d)), metric=metric, tile=tile)


@jax.jit
def operations(cost, u, v, x, live):
    scale, shift = jnp.asarray(7.0, FLOAT), jnp.asarray(0.1, FLOAT)
    f, g = u / scale, v / scale
    product = lambda c, weighted=False: c.product(f, g, x, scale, shift, weighted=weighted)  # noqa: E731
    grad = jax.grad(lambda c: jnp.sum(jnp.sin(product(c))))(cost)
    return (
        product(cost), product(cost, True), cost.T.product(g, f, u, scale, shift), cost.times(x), cost.least(v, live),
        cost.most(live), cost.logsumexp(v, live, 1 / scale, shift), grad,
    )  # fmt: skip


def check_operations(cost, C):
    """Every operation against NumPy in float64; its derivative against that of the formula on the dense costs."""
    n, m = C.shape
    rng = np.random.default_rng(62)
    u, v, x, live = rng.normal(size=n), rng.normal(size=m), rng.normal(size=m), rng.random(m) < 0.7
    *found, grad = operations(cost, *(jnp.asarray(z, FLOAT) for z in (u, v, x)), jnp.asarray(live))
    K = np.exp(u[:, None] + v - 7 * (C - 0.1))
    expected = (
        K @ x, (K * C) @ x, K.T @ u, C @ x, (C - v)[:, live].min(1), C[:, live].max(1),
        np.log(np.exp(7 * (v - C + 0.1))[:, live].sum(1)),
    )  # fmt: skip
    for value, oracle in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, oracle, rtol=100 * NEAR, atol=NEAR)

    def dense(cost):
        return jnp.sum(jnp.sin(jnp.exp(u[:, None] + v[None, :] - 7 * (cost.dense() - 0.1)) @ x))

    with jax.numpy_dtype_promotion("standard"):
        jax.tree.map(
            lambda g, o: np.testing.assert_allclose(g, o, rtol=100 * NEAR, atol=10 * NEAR), grad, jax.grad(dense)(cost)
        )


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: getattr(metric, "__name__", metric))
def test_point_cloud_operations(metric):
    x, y = points()
    cost, C = cloud(metric), cdist(x, y, METRICS[metric])
    np.testing.assert_allclose(cost.dense(), C, atol=NEAR)
    np.testing.assert_allclose(cost.T.dense(), C.T, atol=NEAR)
    check_operations(cost, C)


def test_many_coordinates():
    x, y = points(11)
    np.testing.assert_allclose(cloud(d=11).dense(), cdist(x, y, "sqeuclidean"), rtol=1e-5, atol=NEAR)


@pytest.mark.long
def test_grid_operations():
    sides, others = (np.linspace(0, 1, 4), np.linspace(0, 2, 3)), (np.linspace(0.1, 1.3, 5), np.linspace(0, 1, 2))
    grid = Grid(*(jnp.asarray(z, FLOAT) for z in sides), targets=[jnp.asarray(z, FLOAT) for z in others])
    x, y = (np.stack(np.meshgrid(*z, indexing="ij"), -1).reshape(-1, 2) for z in (sides, others))
    C = cdist(x, y, "sqeuclidean")
    np.testing.assert_allclose(grid.dense(), C, atol=NEAR)
    check_operations(grid, C)
    uneven = Grid(grid.sides[0], targets=grid.others[:1], metric=lambda s, t: s * s * t)
    np.testing.assert_allclose(uneven.T.dense(), (sides[0][:, None] ** 2 * others[0]).T, atol=NEAR)


@jax.jit
def views(solution, y):
    """What is made of a solution: costs, the certificate, the plan, the rounded plan, and products with both."""
    costs = solution.transport_cost, solution.regularized_cost, solution.duality_gap
    products = solution.apply(y), solution.apply(y, rounded=True)
    back = solution.apply(solution.a, transpose=True, rounded=True)
    return costs, solution.plan(), solution.rounded_plan(), products, back


def agree(lazy, stored):
    assert lazy.converged, lazy
    y = np.random.default_rng(63).normal(size=(M, 3)).astype(FLOAT)
    (lazily, plan, _, products, _), (costs, whole, rounded, _, back) = (views(s, y) for s in (lazy, stored))
    for value, oracle in zip((lazy.f, lazy.g, *lazily), (stored.f, stored.g, *costs), strict=True):
        np.testing.assert_allclose(value, oracle, atol=1e-8 if X64 else 3e-3)
    assert abs(lazily[2]) < (1e-8 if X64 else 1e-4)
    np.testing.assert_allclose(plan, whole, atol=1e-9 if X64 else 1e-5)
    np.testing.assert_allclose(products[0], whole @ y, atol=1e-9 if X64 else 1e-4)
    np.testing.assert_allclose(products[1], rounded @ y, atol=1e-9 if X64 else 1e-4)
    np.testing.assert_allclose(back, rounded.T @ np.asarray(lazy.a), atol=NEAR)


def solve(cost, **limits):
    """Called eagerly, so that one program serves all limits."""
    return sns_sinkhorn(cost, *weights(), epsilon=0.02, **limits)


@pytest.fixture(scope="module")
def solved():
    return solve(cloud()), solve(cloud().dense())


@pytest.mark.long
def test_same_answer_as_with_the_matrix(solved):
    agree(*solved)
    assert solved[0].num_steps == solved[1].num_steps or not X64


@pytest.mark.long
def test_certificate_of_a_rough_solution_holds(solved):
    rough, y = solve(cloud(), max_steps=1), jnp.ones((M, 3), FLOAT)
    optimum = views(solved[1], y)[0][1]
    (_, reached, gap), *_ = views(rough, y)
    assert not rough.converged
    assert gap >= optimum - reached - NEAR
    assert gap > 1e-4


def test_plain_sinkhorn_with_more_rows_than_columns():
    a, b = weights()
    lazy, stored = (sinkhorn(cost, b, a, epsilon=0.1) for cost in (cloud().T, cloud().dense().T))
    assert lazy.converged
    np.testing.assert_allclose(lazy.f, stored.f, atol=1e-9 if X64 else 1e-3)


def test_small_problems_are_stored():
    for tile, kept in ((None, jax.ShapeDtypeStruct), (N * M, jax.ShapeDtypeStruct), (N * M - 1, PointCloud)):
        solution = jax.eval_shape(lambda cost: solve(cost), cloud(tile=tile))
        assert isinstance(solution.cost, kept)
        assert solution.cost.shape == (N, M)


@pytest.mark.long
def test_grid_problem_equals_the_matrix_problem():
    axes = (jnp.linspace(0, 1, k, dtype=FLOAT) for k in (4, 7, 4, 8))
    grid = Grid(*(sides := tuple(axes))[:2], targets=sides[2:])
    a, b = weights()
    lazy = sns_sinkhorn(grid, a.reshape(4, 7), b.reshape(4, 8), epsilon=0.02)
    agree(lazy, solve(grid.dense()))


def value(points, a, b, epsilon, tile):
    cost, hessian = PointCloud(*points, tile=tile), DenseCG(single=False)
    solution = sns_sinkhorn(cost, a, b, epsilon=epsilon, tol=1e-12, hessian=hessian)
    return solution.transport_cost + solution.f[0] + 2 * solution.regularized_cost


@needs_x64
@pytest.mark.long
def test_gradients_equal_those_through_the_matrix():
    data = (*(w[w > 0] for w in weights()), jnp.asarray(0.02))
    data = (tuple(jnp.asarray(z[:k]) for z, k in zip(points(), (N - 1, M - 1), strict=True)), *data)
    slopes = jax.jit(jax.grad(value, (0, 1, 2, 3)), static_argnums=4)
    lazy, stored = (slopes(*data, tile) for tile in (TILE, None))
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=1e-8), lazy, stored)


def test_no_array_of_the_size_of_the_matrix_anywhere():
    """Neither in the solve nor in its derivatives; a width of the sparse rows below m, too."""
    rng = np.random.default_rng(65)
    data = tuple(jnp.asarray(z, FLOAT) for z in (rng.random((700, 2)), rng.random((720, 2))))

    def loss(x, y):
        solution = sns_sinkhorn(PointCloud(x, y, tile=2**14), epsilon=0.1)
        return solution.transport_cost + solution.regularized_cost + solution.f[0]

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*data)
    assert 700 * 100 < largest(jaxpr) < 700 * 720 / 2


def largest(closed) -> int:
    from jax.extend import core as extended

    def walk(jaxpr):
        yield from (v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "size"))
        for eqn in jaxpr.eqns:
            for leaf in jax.tree.leaves(
                eqn.params, is_leaf=lambda p: isinstance(p, extended.Jaxpr | extended.ClosedJaxpr)
            ):
                if isinstance(leaf, extended.ClosedJaxpr):
                    yield from walk(leaf.jaxpr)
                elif isinstance(leaf, extended.Jaxpr):
                    yield from walk(leaf)

    return max(walk(closed.jaxpr))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: PointCloud(np.zeros(3), np.zeros((3, 1))), ValueError, "PointCloud: `x` must be an array with 2 axes"),
        (lambda: PointCloud(np.zeros((3, 2)), np.zeros((3, 1))), ValueError, r"`y` must be \(m, 2\)"),
        (lambda: PointCloud(np.zeros((3, 2)), np.zeros((3, 2)), metric="far"), ValueError, "`metric` must be one of"),
        (lambda: PointCloud(np.zeros((3, 2)), np.zeros((3, 2)), tile=0), ValueError, "`tile`"),
        (lambda: PointCloud(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float16)), TypeError, "dtype float32"),
        (lambda: Grid(), ValueError, "Grid: `axes`"),
        (lambda: Grid(np.zeros(2), targets=[]), ValueError, "`targets` must be 1 vectors"),
        (lambda: Grid(np.zeros(2), metric="euclidean"), ValueError, "`metric`"),
        (lambda: sinkhorn_divergence(np.zeros((2, 2)), epsilon=1.0), TypeError, "PointCloud, a Grid, or three arrays"),
        (lambda: sns_sinkhorn(cloud(), np.ones(3), epsilon=1.0), ValueError, r"`a` must be \(28,\)"),
    ],
)
def test_impossible_costs_raise(make, error, words):
    with pytest.raises(error, match=words):
        make()


def gaussians(means, variances):
    x = np.linspace(-9, 9, 200)
    densities = [np.exp(-((x - m) ** 2) / (2 * v)) for m, v in zip(means, variances, strict=True)]
    return x, [d / d.sum() for d in densities]


def entropic(p, q, epsilon):
    """Entropic transport of centred Gaussians of variances p, q in one dimension (Janati et al. 2020, theorem 1)."""
    s = epsilon / 2
    d = np.sqrt(4 * p * q + s**2)
    return p + q - d + s * (1 - np.log(2 * s)) + s * np.log(d + s)


@needs_x64
def test_divergence_of_gaussians():
    x, (a, b) = gaussians((-0.4, 0.5), (0.8, 1.5))
    found = jax.jit(lambda a, b: sinkhorn_divergence(Grid(jnp.asarray(x)), a, b, epsilon=0.5))(a, b)
    exact = 0.9**2 + entropic(0.8, 1.5, 0.5) - entropic(0.8, 0.8, 0.5) / 2 - entropic(1.5, 1.5, 0.5) / 2
    assert found.converged
    np.testing.assert_allclose(found.value, exact, rtol=1e-8)


def price(data):
    x, y, a, b, epsilon = data
    solution = sinkhorn_divergence(PointCloud(x, y), a, b, epsilon=epsilon)
    return solution.value, solution


both = jax.jit(jax.grad(price, has_aux=True))


def priced(*data):
    """Return a divergence's slopes and its solution: one program for all that follows."""
    return both([jnp.asarray(z, FLOAT) for z in data])


def divergence(*data):
    return priced(*data)[1]


@pytest.mark.long
def test_divergence_vanishes_at_equality_with_its_gradient_and_is_positive_elsewhere():
    """One measure twice, the second time among points that carry nothing."""
    a, b = weights()
    x, y = points()
    more = np.concatenate([x, y[: M - N]]), np.concatenate([a, np.zeros(M - N)])
    slopes, same = priced(x, more[0], a, more[1], 0.02)
    assert same.converged
    assert abs(same.value) < (1e-10 if X64 else 1e-4)
    for slope in slopes[:2]:
        assert abs(slope).max() < (1e-7 if X64 else 1e-3)
    other = divergence(x, y, a, b, 0.02)
    assert other.converged
    assert other.value > 1e-3
    assert other.first.num_steps < 60


@needs_x64
@pytest.mark.long
def test_divergence_gradients_against_differences():
    a, b = weights()
    x, y = points()
    rng = np.random.default_rng(66)
    da = rng.normal(size=N) * np.asarray(a)
    move = (rng.normal(size=x.shape), rng.normal(size=y.shape), da - a * da.sum(), 0 * b, 0.01)
    data = (x, y, a, b, 0.02)
    at = lambda t: divergence(*(z + t * d for z, d in zip(data, move, strict=True))).value  # noqa: E731
    h = 1e-4
    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    slopes, _ = priced(*data)
    np.testing.assert_allclose(sum(np.vdot(g, d) for g, d in zip(slopes, move, strict=True)), difference, rtol=1e-6)


@pytest.mark.long
def test_divergence_reports_the_measure_that_failed():
    a, b = weights()
    x, y = points()
    bad = divergence(x, y, a, 2 * b, 0.02)
    assert "unequal masses" in bad.message
    assert not bad.converged
    assert divergence(x * np.nan, y, a, b, 0.02).message.startswith("nonfinite")
