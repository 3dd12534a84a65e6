"""What accelerators run in the place of loops, levels and layouts of the CPU, run on the CPU: the same answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Status, Stencil, multigrid_cg, sor
from solvers.linear.systems.stencil import Masked, Phases

from .reference import dense

X64 = jax.config.jax_enable_x64
FLOAT = jnp.result_type(float)
TOL = 1e-8 if X64 else 1e-4
RNG = np.random.default_rng(59)


@pytest.fixture
def accelerated(monkeypatch):
    """Trace what would run elsewhere; programs of other settings than the tests' own were traced before."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def constant(dims, **options):
    return Stencil.laplacian(dims, shift=jnp.asarray(0.3, FLOAT), **options)


def varying(shape):
    return Stencil.diffusion(jnp.asarray(np.exp(RNG.standard_normal(shape)), FLOAT), shift=0.2)


@pytest.mark.parametrize(
    ("stencil", "shape"),
    [
        (constant(2), (9, 8)),
        (constant(1, periodic=True), (8,)),
        (varying((4, 3, 5)), (4, 3, 5)),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_masked_sweeps_are_those_of_the_polyphase_layout(stencil, shape, reverse):
    y, b = (jnp.asarray(RNG.standard_normal(shape), FLOAT) for _ in range(2))
    phases, masked = Phases(stencil, shape), Masked(stencil)
    want = phases.unpack(phases.sweeper(1.3)(phases.pack(y), phases.pack(b), reverse=reverse))
    np.testing.assert_allclose(masked.sweeper(1.3)(y, b, reverse=reverse), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(masked.mv(y), stencil.mv(y))
    np.testing.assert_allclose(masked.diagonal(), stencil.diagonal())


def test_sweeps_count_and_end_alike(accelerated, monkeypatch):
    """The last block is not walked through step by step, but the count is that of a test after every step."""
    stencil, b = varying((7, 6)), jnp.asarray(RNG.standard_normal((7, 6)), FLOAT)
    found = sor(stencil, b, omega=1.2, tol=TOL, every=7)
    cut = sor(stencil, b, omega=1.2, tol=TOL, every=7, max_steps=found.num_steps - 1)
    monkeypatch.undo()
    want = sor(stencil, b, omega=1.2, tol=TOL, every=1)
    assert found.converged
    assert found.num_steps == want.num_steps
    assert cut.status == Status.MAX_STEPS
    np.testing.assert_allclose(found.value, want.value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.error, want.error, rtol=1e-2)


@pytest.mark.parametrize(("shape", "steps"), [((131, 4), 1), ((260, 3), 7)])
def test_grids_of_more_points_are_solved_on_exactly(shape, steps, accelerated):
    stencil, b = constant(2), jnp.asarray(RNG.standard_normal(shape), FLOAT)
    found = multigrid_cg(stencil, b, tol=TOL, every=2)
    assert found.converged
    assert found.num_steps <= steps
    left = b.ravel() - dense(stencil, shape) @ np.ravel(found.value)
    assert np.linalg.norm(left) <= 2 * TOL * np.linalg.norm(b) + (0 if X64 else 1e-4)
