"""The public functions, each as one compiled program: `from ..compiled import trace` in place of `from solvers import`.

Called eagerly a solver compiles each of its operations for itself, which is most of what a test then does. Tolerances,
penalties, numbers of steps and whatever is in `args` are traced, as they are for users, so that another number is not
another program; numbers that a solver may refuse stay as they are, for it refuses those that it sees.
"""

from functools import cache, wraps

import equinox
import jax
import jax.numpy as jnp
import numpy as np

import solvers


@cache
def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    compiled = equinox.filter_jit(getattr(solvers, name))

    @wraps(compiled)
    def call(*arguments, **options):
        return compiled(*arguments, **{key: _traced(key, value) for key, value in options.items()})

    return call


def _traced(key: str, value):
    if key == "args":
        return jax.tree.map(lambda x: jnp.asarray(x) if type(x) in (int, float) else x, value)
    number = type(value) is float or (key == "max_steps" and type(value) is int)
    return jnp.asarray(value) if number and 0 < value < np.inf else value
