"""Set-up of the whole suite: several virtual devices, strict types, one precision a run."""

import gc
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

# Compiling is most of what the suite does: light optimisation, and no fusion emitters where that is a choice, halve it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu" if not os.environ.get("SOLVERS_TEST_ACCELERATOR") else "")
os.environ.setdefault("MPLBACKEND", "agg")

# Workers, and tests that make the same program again, share what is compiled. JAX_COMPILATION_CACHE_DIR=~/.cache/jax
# pytest makes it outlast the run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/solvers-programs-{os.getpid()}")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import numpy as np
import pytest

import solvers

from . import single_products

if "JAX_ENABLE_X64" not in os.environ:
    jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ.get("SOLVERS_TEST_TF32"):
    single_products.switch_on()

# Tracing makes many short-lived objects and keeps many long-lived ones: look for cycles less often.
gc.freeze()
gc.set_threshold(200_000, 50, 100)

X64 = bool(jax.config.jax_enable_x64)
FLOAT = np.dtype("float64" if X64 else "float32")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep on one worker what shares compiled programs."""
    from xdist.scheduler import LoadScopeScheduling

    class ByPrograms(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return ByPrograms(config, log)


def pytest_unconfigure(config):
    """Remove what was compiled for this run."""
    shared = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if shared.endswith(f"/solvers-programs-{os.getpid()}"):
        shutil.rmtree(shared, ignore_errors=True)


def _group(nodeid: str) -> str:
    """Return the file of a test; of the contract the solver too; a notebook is its own group."""
    file, _, name = nodeid.partition("::")
    if "test_notebooks" in file:
        return nodeid
    parameters = name.partition("[")[2].rstrip("]").split("-")
    solver = next((p for p in parameters if hasattr(solvers, p)), "")
    return f"{file}-{solver}" if "test_contract" in file else file


def pytest_runtest_teardown(item, nextitem):
    """Forget compiled programs in time: each holds memory maps, of which Linux grants a process some 65,000."""
    if nextitem is None or _group(item.nodeid) != _group(nextitem.nodeid):
        maps = Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > 12_000:
            jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(20)


needs_x64 = pytest.mark.skipif(not X64, reason="needs float64: run with JAX_ENABLE_X64=1")
whatever_precision = pytest.mark.skipif(not X64, reason="does not depend on precision: checked in the float64 run")
