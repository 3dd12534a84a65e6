"""What the contract asks of an Optax gradient transformation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _nothing(loss, params, key) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, eq=False)
class Transformation:
    """What `tests/test_contract_transformations.py` asks of a gradient transformation.

    Attributes
    ----------
    name : str
        Of the public call.
    make : callable
        ``make(**numbers)``: the transformation, small, with settings that make it take useful steps on the contract's
        loss, a badly scaled quadratic.
    number : tuple of str and float
        Name of one numerical setting and a value of it; it must be traceable and work under
        ``optax.inject_hyperparams``. The update must depend on it.
    static : tuple of str
        Arguments of `make` that are no numbers to trace, if it has any, for ``optax.inject_hyperparams``.
    extra : callable
        ``extra(loss, params, key)``: the documented extra arguments of ``update`` for that loss.
    descends : float or None
        Part of the contract's loss that may be left after `steps` steps; None for what is no optimiser.
    steps : int
        See `descends`.
    tol : dict
        Relative difference allowed between two ways of running it, by dtype name.
    dtypes : tuple of str
        Dtypes of parameters that it works in.
    examples : int
        How many examples it wants the gradients of, on a leading axis; 0 for the plain gradient.
    """

    name: str
    make: Callable[..., Any]
    number: tuple[str, float]
    static: tuple[str, ...] = ()
    extra: Callable[[Callable, Any, Any], dict[str, Any]] = _nothing
    descends: float | None = None
    steps: int = 60
    tol: tuple[tuple[str, float], ...] = (("float64", 1e-9), ("float32", 1e-4), ("bfloat16", 5e-2))
    dtypes: tuple[str, ...] = ("bfloat16", "float32", "float64")
    examples: int = 0

    def gradient(self, loss: Callable[[Any], Any], params: Any) -> Any:
        """Return what ``update`` takes: the gradient, or examples' gradients whose mean it is."""
        plain = jax.grad(loss)(params)
        if not self.examples:
            return plain
        shares = np.linspace(0.5, 1.5, self.examples)
        stacked = lambda g: jnp.stack([jnp.asarray(s, g.dtype) * g for s in shares])  # noqa: E731
        return jax.tree.map(stacked, plain)
