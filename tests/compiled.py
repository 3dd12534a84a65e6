"""The public functions, each as one compiled program: `from ..compiled import trace` in place of `from solvers import`.

Called eagerly a solver compiles each of its operations for itself, which is most of what a test then does.
"""

from functools import cache

import equinox

import solvers


@cache
def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return equinox.filter_jit(getattr(solvers, name))
