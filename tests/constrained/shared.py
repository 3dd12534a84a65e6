"""The hand-written problems, each solved once: those of one shape share a program, for compiling is what takes time."""

import functools

import jax
from jax import lax

from solvers.problems.constrained import HAND_WRITTEN

from ..compiled import sketched_newton
from ..conftest import FLOAT

TOL = {"float64": 1e-8, "float32": 1e-3}[FLOAT.name]
LOOSE = {"float64": 1e-5, "float32": 2e-2}[FLOAT.name]


@functools.cache
def problem(name):
    return HAND_WRITTEN[name]()


@functools.cache
def shape(name):
    p = problem(name)
    return p.x0.size, jax.eval_shape(p.equality, p.x0, p.args).shape[0]


@functools.cache
def alike(n, m):
    """Return the problems of n variables and m equations as one, which of them being its `args`."""
    names = tuple(name for name in HAND_WRITTEN if shape(name) == (n, m))

    def objective(x, which):
        return lax.switch(which, [lambda x, p=problem(k): p.objective(x, None) for k in names], x)

    def equality(x, which):
        return lax.switch(which, [lambda x, p=problem(k): p.equality(x, None) for k in names], x)

    return names, objective, equality


@functools.cache
def program(n, m):
    names, objective, equality = alike(n, m)
    solve = jax.jit(lambda x, which, tol: sketched_newton(objective, x, equality=equality, args=which, tol=tol))
    return names, solve


@functools.cache
def solution(name, tol=TOL):
    """Return the solution of a hand-written problem from its standard start."""
    names, solve = program(*shape(name))
    return solve(problem(name).x0, names.index(name), tol)
