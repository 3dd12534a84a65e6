"""Several devices and processes, ragged batches, and maps."""

import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solvers import PointCloud, fit_transport_map, monge_gap, sns_sinkhorn, stack_ragged
from solvers.transport import DenseCG

from ..conftest import FLOAT, X64, needs_x64

TIGHT = 1e-12 if X64 else 1e-5
ROOT = Path(__file__).parents[2]


def clouds(n, m, seed=90):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(z, FLOAT) for z in (rng.random((n, 2)), rng.normal(0.5, 0.2, (m, 2))))


def answer(x, y, mesh):
    solution = sns_sinkhorn(PointCloud(x, y, tile=150, mesh=mesh), epsilon=0.01)
    return solution.transport_cost, (solution.f, solution.g, solution.error, solution.regularized_cost)


slopes = jax.jit(jax.value_and_grad(answer, has_aux=True), static_argnums=2)


@pytest.fixture(scope="module")
def alone():
    return slopes(*clouds(26, 31), None)


@pytest.mark.parametrize("devices", [3, 4])
@pytest.mark.long
def test_points_over_a_mesh_equal_one_device(devices, alone):
    """Neither three nor four devices divide the 26 and 31 points; four differentiate too."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("rows",))
    if devices == 3:
        many, alone = jax.jit(answer, static_argnums=2)(*clouds(26, 31), mesh), alone[0]
    else:
        many = slopes(*clouds(26, 31), mesh)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=1e-10 if X64 else 1e-3), many, alone)


@pytest.mark.long
def test_a_spread_matrix_equals_one_device():
    x, y = clouds(28, 31)
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    mesh = Mesh(np.array(jax.devices()), ("rows",))
    solve = jax.jit(lambda c: (*(s := sns_sinkhorn(c, epsilon=0.01, hessian="dense")).value, s.error))
    spread = jax.device_put(cost, NamedSharding(mesh, PartitionSpec("rows")))
    for p, q in zip(solve(spread), solve(cost), strict=True):
        np.testing.assert_allclose(p, q, atol=1e-10 if X64 else 1e-3)


@pytest.mark.long
@pytest.mark.parametrize(("hessian", "copies"), [("auto", 3), (DenseCG(single=False), 2)], ids=["auto", "iterated"])
def test_memory_beside_stored_costs(hessian, copies):
    """In arrays of the cost's size, by what the compiler says it will allocate; a newer one holds another."""
    n = 300
    cost, weights, number = (jax.ShapeDtypeStruct(shape, FLOAT) for shape in ((n, n), (n,), ()))

    def solve(cost, a, b, epsilon):
        solution = sns_sinkhorn(cost, a, b, epsilon=epsilon, hessian=hessian)
        return solution.value, solution.error

    needed = jax.jit(solve).lower(cost, weights, weights, number).compile().memory_analysis().temp_size_in_bytes
    newer = not metadata.version("jaxlib").startswith("0.10.")
    assert needed / (n * n * FLOAT.itemsize) < copies + newer + 0.35  # vectors, and a mask of a byte an entry


PROCESS = """
import sys, jax, numpy as np
from jax.sharding import Mesh
jax.config.update("jax_enable_x64", True)
try:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
except Exception:
    pass
jax.distributed.initialize("localhost:" + sys.argv[1], 2, int(sys.argv[2]))
from solvers import PointCloud
from solvers import sns_sinkhorn
rng = np.random.default_rng(91)
x, y = rng.random((26, 2)), rng.random((31, 2))
mesh = Mesh(np.array(jax.devices()), ("rows",))
assert mesh.size == 2 and jax.process_count() == 2
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
solve = jax.jit(lambda x, y: sns_sinkhorn(PointCloud(x, y, mesh=mesh), epsilon=0.01, tol=1e-11).f, out_shardings=whole)
print("potential", " ".join(repr(float(z)) for z in np.asarray(solve(x, y))))
"""


@needs_x64
@pytest.mark.slow
def test_two_processes_equal_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(port), str(i)], cwd=ROOT, env=env, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(2)
    ]  # fmt: skip
    try:
        outputs = [p.communicate(timeout=180) for p in processes]
    finally:
        for p in processes:
            p.kill()
    found = []
    for out, err in outputs:
        lines = [line for line in out.splitlines() if line.startswith("potential")]
        assert lines, err[-2000:]
        found.append([float(z) for z in lines[0].split()[1:]])
    rng = np.random.default_rng(91)
    x, y = rng.random((26, 2)), rng.random((31, 2))
    alone = sns_sinkhorn(PointCloud(x, y), epsilon=0.01, tol=1e-11).f
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], alone, atol=1e-10)


paid = jax.jit(lambda solution: solution.transport_cost)


@pytest.mark.long
def test_padding_changes_nothing():
    sizes, rng = ((9, 12), (15, 7), (15, 16)), np.random.default_rng(92)
    xs, ys = ([rng.random((size[k], 2)) for size in sizes] for k in (0, 1))
    (x, a), (y, b) = stack_ragged(xs, length=16), stack_ragged(ys, [np.full(len(z), 1 / len(z)) for z in ys])
    assert x.shape == y.shape == (3, 16, 2)

    @jax.jit
    @jax.vmap
    def solve(x, y, a, b):
        solution = sns_sinkhorn(PointCloud(x, y), a, b, epsilon=0.01, tol=TIGHT)
        return solution.f, solution.transport_cost, solution.status

    f, cost, status = solve(*(jnp.asarray(z, FLOAT) for z in (x, y, a, b)))
    assert np.all(status == 0)
    for i, (p, q) in enumerate(zip(xs, ys, strict=True)):
        alone = sns_sinkhorn(PointCloud(*(jnp.asarray(z, FLOAT) for z in (p, q))), epsilon=0.01, tol=TIGHT)
        np.testing.assert_allclose(f[i, : len(p)], alone.f, atol=1e-10 if X64 else 1e-4)
        np.testing.assert_allclose(cost[i], paid(alone), rtol=1e-10 if X64 else 1e-4)
    for wrong in ({"length": 3}, {"weights": [np.ones(2)] * 3}):
        with pytest.raises(ValueError, match="stack_ragged"):
            stack_ragged(xs, **wrong)
    with pytest.raises(ValueError, match="points"):
        stack_ragged([])


@jax.jit
def gap(x, mapped, epsilon):
    return monge_gap(x, mapped, epsilon=epsilon)


def turned(x, angle, epsilon):
    """Return the gap of a rotation: 300 points, so that one program serves both clouds."""
    c, s = np.cos(angle), np.sin(angle)
    return gap(*(jnp.asarray(z, FLOAT) for z in (x, x @ np.array([[c, s], [-s, c]]), epsilon)))


@pytest.mark.long
def test_gap_is_zero_at_the_identity_and_known_for_rotations():
    """On a rotation-invariant cloud the divergence vanishes and the gap is what the rotation pays."""
    turns = 2 * np.pi * np.arange(100) / 100
    circles = [radius * np.stack([np.cos(turns), np.sin(turns)], 1) for radius in (0.5, 1.0, 1.6)]
    x = np.concatenate(circles)
    second_moment = (x**2).sum(1).mean()
    for k in (0, 8, 33):
        found = turned(x, turns[k], 0.1)
        assert found.converged
        np.testing.assert_allclose(found.value, 2 * second_moment * (1 - np.cos(turns[k])), atol=1e-8 if X64 else 1e-3)


@pytest.mark.long
def test_gap_of_a_gaussian_rotation():
    x = np.random.default_rng(93).normal(size=(300, 2))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    found = turned(x, 1.0, 0.5)
    np.testing.assert_allclose(found.value, 4 * (1 - np.cos(1.0)), rtol=0.03)
    with pytest.raises(ValueError, match="`mapped` must be"):
        monge_gap(x, x[:5], epsilon=0.1)


@pytest.mark.long
def test_fits_a_known_map():
    rng = np.random.default_rng(94)
    x = jnp.asarray(rng.normal(size=(60, 2)), FLOAT)
    A, b = jnp.asarray([[1.5, 0.3], [0.3, 0.7]], FLOAT), jnp.asarray([1.0, -0.5], FLOAT)
    y = x @ A + b[None]
    seen = []
    fitted = fit_transport_map(
        x, y, key=jax.random.key(95), width=16, depth=1, max_steps=150, history=8,
        progress=lambda step, error: seen.append((step, error)),
    )  # fmt: skip
    jax.effects_barrier()
    assert fitted.error < 0.02
    assert fitted.history[0] == pytest.approx(1.0, rel=1e-3)
    relative = jnp.mean(jnp.sum((fitted.value(x) - y) ** 2, 1)) / jnp.mean(jnp.sum((x - y) ** 2, 1))
    assert relative < 0.02
    assert seen[-1][0] == fitted.num_steps
    assert np.isfinite(fitted.divergence + fitted.gap)
