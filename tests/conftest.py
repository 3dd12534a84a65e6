"""Set-up of the whole suite: several virtual devices, strict types, one precision a run."""

import os
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu" if not os.environ.get("SOLVERS_TEST_ACCELERATOR") else "")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import numpy as np
import pytest

if "JAX_ENABLE_X64" not in os.environ:
    jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

X64 = bool(jax.config.jax_enable_x64)
FLOAT = np.dtype("float64" if X64 else "float32")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep on one worker what shares compiled programs: a file, and of the contract what one solver needs."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item) -> str:
    call = getattr(item, "callspec", None)
    return f"{item.path.stem}-{call.params['case'].name if call and 'case' in call.params else ''}"


def pytest_runtest_teardown(item, nextitem):
    """Forget compiled programs in time: each holds memory maps, of which Linux grants a process some 65,000."""
    if nextitem is None or _group(item) != _group(nextitem):
        maps = Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > 12_000:
            jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(20)


needs_x64 = pytest.mark.skipif(not X64, reason="needs float64: run with JAX_ENABLE_X64=1")
