"""The instances are what their docstrings say, and the judge of the benchmark is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from solvers.problems import transport

SHAPES = {"assignment": 500, "digits_l2": 784, "digits_l1": 784}
SMALL = {
    "clouds": lambda: transport.clouds(30, 21, relative=1e-2, seed=7),
    "mixtures": lambda: transport.mixtures(40),
    "device clouds": lambda: transport.device_clouds(24, 17, seed=7),
    "device random": lambda: transport.device_clouds(24, 17, seed=7, kind="random"),
}


@pytest.mark.parametrize("name", transport.PUBLISHED)
def test_published_instances_are_well_posed_and_repeatable(name):
    problem, again = transport.PUBLISHED[name](), transport.PUBLISHED[name]()
    n = SHAPES.get(name, 1000)
    assert problem.cost.shape == (n, n)
    assert problem.a.shape == problem.b.shape == (n,)
    assert problem.cost.dtype == np.float64
    assert np.isfinite(problem.cost).all()
    assert problem.cost.min() >= 0
    assert min(problem.a.min(), problem.b.min()) > 0
    np.testing.assert_allclose([problem.a.sum(), problem.b.sum()], 1.0, atol=1e-14)
    for x, y in zip(jax.tree.leaves(problem), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)


def test_epsilon_is_what_the_name_says():
    for name, relative in [("mixtures_1e-3", 1e-3), ("clouds_1e-4", 1e-4), ("clouds_1e-2", 1e-2)]:
        problem = transport.PUBLISHED[name]()
        assert problem.epsilon == pytest.approx(relative * problem.cost.mean())
    assert transport.assignment(5).epsilon == 1 / 1200


def test_digit_costs_are_the_two_distances():
    squared, city = transport.digits("l2").cost, transport.digits("l1").cost
    assert squared.max() == city.max() == 1.0
    i, j = (3, 5), (20, 11)  # pixels of a 28 by 28 grid; opposite corners are 27 apart in both directions
    at = i[0] * 28 + i[1], j[0] * 28 + j[1]
    assert squared[at] == pytest.approx((17**2 + 6**2) / (2 * 27**2))
    assert city[at] == pytest.approx((17 + 6) / (2 * 27))
    with pytest.raises(ValueError, match="`metric` must be one of 'l1', 'l2', got 'l3'"):
        transport.digits("l3")


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_generated_instances(make):
    problem = make()
    n, m = problem.cost.shape
    assert problem.a.shape == (n,)
    assert problem.b.shape == (m,)
    np.testing.assert_allclose([problem.a.sum(), problem.b.sum()], 1.0, rtol=1e-5)
    assert np.isfinite(problem.cost).all()
    for x, y in zip(jax.tree.leaves(problem), jax.tree.leaves(make()), strict=True):
        np.testing.assert_array_equal(x, y)


def test_device_batch_holds_different_problems_of_mean_cost_one():
    batch = transport.device_batch(3, 16, seed=7)
    assert batch.cost.shape == (3, 16, 16)
    np.testing.assert_allclose(batch.cost.mean((1, 2)), 1.0, rtol=1e-5)
    np.testing.assert_allclose(batch.a.sum(1), 1.0, rtol=1e-5)
    assert not np.allclose(batch.cost[0], batch.cost[1])


def test_astype_rounds_the_whole_problem():
    problem = transport.clouds(30, 21, seed=7).astype(np.float32)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(problem))
    assert problem.a.sum() == pytest.approx(1.0, abs=1e-6)


def test_marginal_error_of_sinkhorn_by_hand():
    problem = transport.clouds(30, 21, relative=0.3, seed=7)
    eps, g = problem.epsilon, np.zeros(21)
    errors = []
    for _ in range(150):
        f = eps * (np.log(problem.a) - logsumexp((g - problem.cost) / eps, axis=1))
        g = eps * (np.log(problem.b) - logsumexp((f[:, None] - problem.cost) / eps, axis=0))
        errors.append(problem.marginal_error(problem.plan(f, g)))
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-12
    wrong = np.outer(problem.a, problem.b)
    wrong[0, 0] += 0.25  # one row and one column carry a quarter too much
    assert problem.marginal_error(wrong) == pytest.approx(0.5)
    assert problem.marginal_error(wrong * np.nan) == np.inf


def test_palette_is_the_mean_of_equal_shares():
    pixels = np.random.default_rng(7).random((1000, 3))
    colours, shares = transport.palette(pixels, 13)
    assert colours.shape == (13, 3)
    assert shares.sum() == pytest.approx(1.0)
    assert np.ptp(shares) <= 4 / 1000
    np.testing.assert_allclose(shares @ colours, pixels.mean(0), rtol=1e-12)
    whole, _ = transport.palette(pixels, 1000)
    np.testing.assert_array_equal(whole[np.lexsort(whole.T)], pixels[np.lexsort(pixels.T)])


def test_lab_against_known_colours_and_back():
    rgb = np.array([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]])
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]  # D65, two decimals
    np.testing.assert_allclose(transport.to_lab(rgb), known, atol=0.02)
    colours = np.random.default_rng(7).random((50, 3))
    np.testing.assert_allclose(transport.from_lab(transport.to_lab(colours)), colours, atol=1e-9)


def test_recolouring_of_a_photograph():
    transfer = transport.colour_transfer(64)
    problem = transfer.problem
    assert problem.cost.shape == (64, 64)
    assert problem.cost.mean() == pytest.approx(1.0)
    assert transfer.source.shape == transfer.target.shape == (427, 640, 3)
    # the independent coupling sends every colour to the mean of the target
    mean = problem.b @ transfer.target_palette
    np.testing.assert_allclose(transfer.moved(np.outer(problem.a, problem.b)), np.tile(mean, (64, 1)), atol=1e-9)
    # a plan that stays where it is leaves the photograph as it was
    import equinox as eqx

    to_itself = eqx.tree_at(lambda t: t.target_palette, transfer, transfer.source_palette)
    np.testing.assert_allclose(to_itself.recolour(np.diag(problem.a)), transfer.source, atol=1e-7)


def test_device_clouds_are_jax_arrays_of_the_dtype_asked_for():
    problem = transport.device_clouds(9, seed=7, dtype=jnp.float32)
    assert isinstance(problem.cost, jax.Array)
    assert problem.cost.dtype == problem.a.dtype == jnp.float32
    with pytest.raises(ValueError, match="`kind` must be one of"):
        transport.device_clouds(9, kind="circles")
