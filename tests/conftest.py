"""Set-up of the whole suite: several virtual devices, strict types, one precision a run."""

import os

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


@pytest.fixture
def rng():
    return np.random.default_rng(20)


needs_x64 = pytest.mark.skipif(not X64, reason="needs float64: run with JAX_ENABLE_X64=1")
