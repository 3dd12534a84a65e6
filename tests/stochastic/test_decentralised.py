"""DADAO's flow against a matrix exponential, its minimiser against a dense solve, and what its error promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from solvers import DecentralisedStatus, Status, gossip_rates
from solvers.problems.stochastic import barbell, network, ring
from solvers.stochastic.gossip.decentralised import Flow

from ..compiled import dadao, mudag
from ..conftest import FLOAT, needs_x64

NODES, D = 8, 3
TOL = {"float64": 1e-8, "float32": 2e-4}[FLOAT.name]


def gradient(x, node):
    return node[0] @ x - node[1]


@pytest.fixture(scope="module")
def problem():
    net = network(np.random.default_rng(5), NODES, D)
    args = (jnp.asarray(net.A, FLOAT), jnp.asarray(net.b, FLOAT))
    return net, args, {"mu": net.mu, "smoothness": net.smoothness}


def run(method, problem, edges=None, x0=None, **options):
    _, args, curvature = problem
    if method is dadao:
        options.setdefault("key", jax.random.key(3))
    x0 = jnp.zeros(D, FLOAT) if x0 is None else x0
    return method(gradient, x0, args, ring(NODES) if edges is None else edges, **{**curvature, **options})


def test_flow_is_the_matrix_exponential():
    flow = Flow.of(*(jnp.asarray(x, FLOAT) for x in (0.3, 4.0, 2.0)))
    a, b, theta, nu = (float(x) for x in (flow.a, flow.b, flow.theta, flow.nu))
    M = np.zeros((6, 6))
    M[0, :2], M[1, :2] = (-b, b), (b, -b)
    M[2, 2:4] = -a, a
    M[3, 1:5] = -theta * nu, -theta, 0, -theta
    M[4, 4:], M[5, 4:] = (-a, a), (b, -b)
    for dt in (0.0, 0.1, 3.0, 50.0):
        exact = expm(M * dt)
        np.testing.assert_allclose(flow.matrix(jnp.asarray(dt, FLOAT)), exact, atol=1e-6 * TOL / 1e-8 * 1e-6 + 2e-5 *
                                   (FLOAT == "float32"))  # fmt: skip


@pytest.mark.parametrize("method", [dadao, mudag])
def test_every_node_has_the_minimiser_within_the_error(method, problem):
    net = problem[0]
    sol = run(method, problem)
    assert sol.converged, sol
    distance = np.linalg.norm(np.asarray(sol.nodes, float) - net.optimum, axis=1).max() / np.linalg.norm(net.optimum)
    assert distance <= float(sol.error) * 1.01 + 1e-6 * (FLOAT == "float32")
    assert sol.num_messages > 0
    assert sol.num_gradients % NODES == 0 or method is dadao


@pytest.mark.parametrize("method", [dadao, mudag])
@pytest.mark.long
def test_the_error_bounds_the_distance_on_the_way(method, problem):
    net = problem[0]
    for steps in (0, 1, 3, 6):
        sol = run(method, problem, max_steps=steps, tol=0.0)
        scale = max(np.linalg.norm(sol.value), np.linalg.norm(np.mean(net.b, axis=0)) / net.smoothness)
        distance = np.linalg.norm(np.asarray(sol.nodes, float) - net.optimum, axis=1).max() / scale
        assert distance <= float(sol.error) * (1 + 1e-4)


@needs_x64
def test_a_ring_of_eight_to_twelve_digits(problem):
    sol = run(dadao, problem, tol=1e-12)
    assert sol.converged, sol
    np.testing.assert_allclose(sol.nodes, np.tile(problem[0].optimum, (NODES, 1)), rtol=1e-11)


@pytest.mark.long
def test_best_rates_need_fewer_messages_on_a_barbell(problem):
    edges = barbell(4)
    within = {} if FLOAT == "float64" else {"tol": 3e-4}  # over the narrow bridge float32 stagnates at 1.4e-4
    equal = run(dadao, problem, edges, **within)
    best = run(dadao, problem, edges, rates=gossip_rates(edges, NODES, tol=1e-2).value, **within)
    assert equal.converged
    assert best.converged
    assert int(best.num_messages) < 0.75 * int(equal.num_messages)


@pytest.mark.parametrize("method", [dadao, mudag])
@pytest.mark.parametrize("wrong", [{"mu": 8.0}, {"smoothness": 0.2}])
def test_false_promises_about_curvature_are_caught(method, wrong, problem):
    """With mu too large the error would be too small, with smoothness too small the steps too long."""
    net, _, curvature = problem
    lies = {k: v * curvature[k] for k, v in wrong.items()}
    if "mu" in lies:  # beyond the largest curvature of the mean, though below every node's smoothness
        lies = {"mu": float(np.linalg.eigvalsh(net.A.mean(0))[-1]) * 1.01, "smoothness": 20.0}
    sol = run(method, problem, **lies)
    assert not sol.converged
    assert sol.status in (DecentralisedStatus.CURVATURE, Status.DIVERGED)


@pytest.mark.parametrize("method", [dadao, mudag])
def test_nodes_that_cannot_hear_are_named(method, problem):
    sol = run(method, problem, np.array([[0, 1], [2, 3], [4, 5], [6, 7]]))
    assert sol.status == DecentralisedStatus.DISCONNECTED
    if method is dadao:
        silent = jnp.asarray([0.0] + [1.0] * 6 + [0.0], FLOAT)
        assert run(method, problem, rates=silent).status == DecentralisedStatus.DISCONNECTED


@pytest.mark.parametrize("method", [dadao, mudag])
def test_units_do_not_matter(method, problem):
    """The same steps in other units of the argument and of the functions."""
    net, args, curvature = problem
    plain = run(method, problem)
    for unit, scale in ((1e6, 1e-8), (1e-6, 1e8)):
        scaled = (args[0] * scale, args[1] * scale * unit)
        curved = {k: v * scale for k, v in curvature.items()}
        sol = run(method, (net, scaled, curved))
        assert sol.converged
        assert abs(int(sol.num_steps) - int(plain.num_steps)) <= 1
        np.testing.assert_allclose(sol.value / unit, plain.value, rtol=100 * TOL, atol=10 * TOL)


@pytest.mark.parametrize("method", [dadao, mudag])
def test_nodes_may_lie_on_several_devices(method, problem):
    """Their data sharded over four devices, two nodes each: the same steps and answer, found where the data are."""
    net, args, curvature = problem
    mesh = jax.make_mesh((4,), ("nodes",), axis_types=(jax.sharding.AxisType.Auto,))
    there = jax.device_put(args, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("nodes")))
    plain, spread = run(method, problem), run(method, (net, there, curvature))
    assert spread.converged
    assert abs(int(spread.num_steps) - int(plain.num_steps)) <= 1
    np.testing.assert_allclose(spread.value, plain.value, rtol=100 * TOL, atol=10 * TOL)
    if method is mudag:
        assert len(spread.nodes.sharding.device_set) == 4


@pytest.mark.long
def test_what_cannot_be_is_refused(problem):
    for options, message in (
        ({"mu": 0.0}, "`mu` must be a positive number"),
        ({"every": 0}, "`every`"),
        ({"rates": jnp.ones(3, FLOAT)}, "one an edge"),
        ({"x0": jnp.zeros((2, 2), FLOAT)}, "`x0`"),
        ({"unconverged": "zero"}, "`unconverged`"),
    ):
        with pytest.raises(ValueError, match=f"dadao: .*{message.split('`')[-2] if '`' in message else message}"):
            run(dadao, problem, **options)
    with pytest.raises(ValueError, match="leading axis"):
        dadao(gradient, jnp.zeros(D, FLOAT), (jnp.ones((2, D, D)), jnp.ones((3, D))), ring(3), mu=1, smoothness=1,
              key=jax.random.key(3))  # fmt: skip
