"""Two forms of a computation: one for processors, one for accelerators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def present() -> bool:
    """Return whether programs may run on anything but a processor."""
    return jax.default_backend() != "cpu"


def by_platform(*operands: Any, cpu: Callable, accelerator: Callable) -> Any:
    """Return ``cpu(*operands)`` in programs for processors and ``accelerator(*operands)`` in others.

    Like ``lax.platform_dependent``, but a process without an accelerator does not trace the form that it cannot use.
    """
    if not present():
        return cpu(*operands)
    return lax.platform_dependent(*operands, cpu=cpu, default=accelerator)
