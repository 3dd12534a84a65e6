"""Stochastic bilevel steps on quadratics with a known optimum: noise-free fixed points, speed-up, what diverges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import bsvrb, single_loop
from solvers.problems.bilevel import block_quadratics

from ..compiled import hypergradient
from ..conftest import FLOAT

M = 8


@pytest.fixture(scope="module")
def problem():
    return block_quadratics(np.random.default_rng(5), blocks=M, p=3, d=4, dtype=FLOAT)


def method(problem, sampled, noise=0.0, **options):
    def sample(i, key):
        block = jax.tree.map(lambda a: a[i], problem.data)
        draw = noise * jax.random.normal(key, block.c.shape, FLOAT)
        return block._replace(c=block.c + draw)

    options = {"x_step": 0.2, "y_step": 0.3, **options}
    return bsvrb(problem.upper, problem.lower, sample, blocks=M, sampled=sampled, **options)


def run(problem, made, steps, key=3):
    state = made.init(jnp.zeros(3, FLOAT), jnp.zeros((M, 4), FLOAT))
    measure = lambda s: jnp.linalg.norm(s.x - problem.optimum)  # noqa: E731
    return jax.jit(lambda k: made.run(state, k, steps, measure))(jax.random.key(key))


@pytest.mark.parametrize("variant", ["products", "hessian"])
@pytest.mark.long
def test_without_noise_all_blocks_reach_the_optimum(variant, problem):
    state, distance = run(problem, method(problem, M, variant=variant), 400)
    small = {"float64": 1e-8, "float32": 1e-4}[FLOAT.name]
    assert distance[-1] < 100 * small
    np.testing.assert_allclose(state.y, problem.minimisers(problem.optimum), atol=100 * small)
    np.testing.assert_allclose(state.estimate, jnp.zeros(3), atol=100 * small)


@pytest.mark.parametrize("variant", ["products", "hessian"])
def test_a_few_blocks_reach_it_too(variant, problem):
    _, distance = run(problem, method(problem, 2, variant=variant, x_step=0.1, momentum=0.02), 2000)
    assert distance[-1] < 0.15 * distance[0]


@pytest.mark.long
def test_more_blocks_need_fewer_steps():
    """Steps to a fixed gap fall to 0.7 or less with every doubling of the blocks sampled, noise included."""
    wide = block_quadratics(np.random.default_rng(5), blocks=16, p=3, d=4, dtype=FLOAT)
    counts = []
    for sampled in (2, 4, 8):

        def sample(i, key):
            block = jax.tree.map(lambda a: a[i], wide.data)
            return block._replace(c=block.c + 0.02 * jax.random.normal(key, block.c.shape, FLOAT))

        made = bsvrb(
            wide.upper, wide.lower, sample, blocks=16, sampled=sampled, x_step=0.1, y_step=0.3, momentum=0.02
        )  # fmt: skip

        def distances(key, made=made):
            state = made.init(jnp.zeros(3, FLOAT), jnp.zeros((16, 4), FLOAT))
            return made.run(state, key, 2400, lambda s: jnp.linalg.norm(s.x - wide.optimum))[1]

        lanes = np.asarray(jax.jit(jax.vmap(distances))(jax.random.split(jax.random.key(3), 6)))
        reached = lanes < 0.1 * float(jnp.linalg.norm(wide.optimum))
        assert np.mean(reached.any(axis=1)) > 0.6
        counts.append(float(np.median(np.where(reached.any(axis=1), reached.argmax(axis=1), 2400))))
    assert all(b <= 0.7 * a for a, b in itertools.pairwise(counts)), counts


def test_unscaled_steps_leave_all_bounds(problem):
    """What the scaling by sampled / blocks is for."""
    _, distance = run(problem, method(problem, 1, scaled=False, y_step=0.6), 500)
    assert not distance[-1] < 1


@pytest.mark.parametrize("name", ["soba", "saba", "f2sa"])
def test_single_loops_find_the_optimum(name):
    problem = block_quadratics(np.random.default_rng(6), blocks=1, p=3, d=4, dtype=FLOAT)
    block = jax.tree.map(lambda a: a[0], problem.data)
    rng = np.random.default_rng(3)
    shifts = rng.standard_normal((10, 4))
    shifts = jnp.asarray(0.2 * (shifts - shifts.mean(0)), FLOAT)
    upper = lambda x, y, d: problem.upper(x, y, block)  # noqa: E731
    lower = lambda x, y, d: problem.lower(x, y, block._replace(c=block.c + d))  # noqa: E731
    settings = {"soba": (0.02, 0.2, 10), "saba": (0.05, 0.1, 1), "f2sa": (0.03, 0.3, 10)}[name]
    made = single_loop(upper, lower, shifts, method=name, x_step=settings[0], y_step=settings[1], batch=settings[2],
                       penalty=100.0 if name == "f2sa" else 10.0)  # fmt: skip
    state = made.init(jnp.zeros(3, FLOAT), jnp.zeros(4, FLOAT))
    state, _ = jax.jit(lambda k: made.run(state, k, 3000))(jax.random.key(3))
    bound = {"soba": 0.1, "saba": 1e-3, "f2sa": 0.1}[name]
    assert jnp.linalg.norm(state.x - problem.optimum) < bound * jnp.linalg.norm(problem.optimum) + 1e-3
    if name == "saba":
        mean = hypergradient(lambda x, y, _: problem.upper(x, y, block), lambda x, y, _: problem.lower(x, y, block),
                             state.x, problem.minimisers(state.x)[0])  # fmt: skip
        assert jnp.linalg.norm(mean.value) < 1e-2


def test_what_cannot_be_is_refused(problem):
    for options, message in (
        ({"variant": "inverse"}, "variant"),
        ({"tracking": 1.5}, "tracking"),
        ({"x_step": 0.0}, "x_step"),
    ):
        with pytest.raises(ValueError, match=f"bsvrb: `{message}`"):
            method(problem, 2, **options)
    with pytest.raises(ValueError, match="sampled"):
        method(problem, M + 1)
    with pytest.raises(ValueError, match="method"):
        single_loop(problem.upper, problem.lower, jnp.zeros(3), method="sustain", x_step=1, y_step=1)
