"""The CUTEst problems of the comparison, one module at a time (importing all of sif2jax takes 40 seconds)."""

import functools
import importlib
import importlib.util
import pathlib
import re
import sys
import types

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from solvers.problems.constrained import HAND_WRITTEN, NLP

PAPER = """
HS6 BT5 BT9 HS28 BT10 HIMMELBA BT12 HS40 BT3 BT6 BT11 HS7 GENHS28 HS51 SINVALNE BOOTH HS52 HS47 HS48 HS50
RSNBRNE CUBENE HS77 MWRIGHT ZANGWIL3 TRIGON1NE HS78 HS56 HELIXNE HS42 HS79 ORTHREGB HS100LNP GOTTFR HIMMELBE
DENSCHNCNE DENSCHNFNE HIMMELBC INTEQNE MANCINONE BT2
"""
HARDER = """
HS26 HS27 HS39 HS46 HS49 HS61 HS111LNP MARATOS BT1 BT4 BT7 BT8 BYRDSPHR FLT MSS1
"""
FOLDERS = ("_constrained_minimisation", "_nonlinear_equations")


def problem(name: str) -> NLP:
    """Return a problem by its CUTEst name: ours when written out, otherwise sif2jax's."""
    if name in HAND_WRITTEN:
        return HAND_WRITTEN[name]()
    instance = _load(name)
    x0, unravel = ravel_pytree(instance.y0)
    x0 = x0.astype(jnp.result_type(float))

    def objective(x, args):
        return jnp.asarray(instance.objective(unravel(x), args), x.dtype).reshape(())

    def equality(x, args):
        return ravel_pytree(instance.constraint(unravel(x))[0])[0].astype(x.dtype)

    return NLP(name, objective, equality, x0, instance.args, instance.expected_objective_value)


@functools.cache
def _root() -> pathlib.Path:
    return pathlib.Path(importlib.util.find_spec("sif2jax").submodule_search_locations[0])


@functools.cache
def _index() -> dict[str, str]:
    where = {}
    for folder in FOLDERS:
        for file in (_root() / "cutest" / folder).glob("*.py"):
            for name in re.findall(r"^class (\w+)\(", file.read_text(), re.M):
                where.setdefault(name, f"sif2jax.cutest.{folder}.{file.stem}")
    return where


def _load(name):
    if "sif2jax" not in sys.modules:
        _root()
        for package in ("", ".cutest", *(f".cutest.{folder}" for folder in FOLDERS)):
            module = types.ModuleType("sif2jax" + package)
            module.__path__ = [str(_root()) + package.replace(".", "/")]
            sys.modules["sif2jax" + package] = module
    return getattr(importlib.import_module(_index()[name]), name)()
