"""Products of a solver keep every digit: on accelerators those of float32 that do not ask have ten bits (TF32)."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

import solvers

from . import (
    test_contract,
    test_contract_beliefs,
    test_contract_estimators,
    test_contract_modules,
    test_contract_samplers,
    test_contract_transformations,
)
from .cases import CASES, collect
from .conftest import FLOAT, whatever_precision
from .single_products import PRODUCTS, asks_for_all

TESTS = Path(__file__).parent
PACKAGE = Path(solvers.__file__).parent
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "tour" not in p.parts)
DEFAULT = {"linear/learned/conv_network.py": "_conv"}  # its class says that its products are the accelerator's default
CALLS = {
    *("dot", "vdot", "matmul", "einsum", "tensordot", "inner", "vecdot", "matvec", "vecmat", "convolve", "correlate"),
    *("dot_general", "conv", "conv_general_dilated", "conv_with_general_padding", "conv_transpose", "batch_matmul"),
    *("multi_dot", "matrix_power", "cov", "corrcoef"),
}
"""What jax.numpy and jax.lax offer that multiplies in the default precision unless told."""
NOT_OF_JAX = {
    *("convexnets/cells.py", "linear/cycles/algebraic.py", "linear/cycles/constant.py", "linear/cycles/host.py"),
    *("pde/spectral/axes.py", "problems/bilevel.py", "problems/constrained.py", "problems/lowrank.py"),
    *("problems/transport.py", "statespace/perturbation.py", "statespace/response.py", "tensor/harmonics.py"),
    "transport/systems/sparse_systems.py",  # of its own rows, which are sums
}
"""Files whose ``@`` is not a product of arrays of JAX, but of NumPy's, or of a class that sums."""

pytestmark = whatever_precision  # it is stated in the program, not in the numbers


def written(path: Path) -> list[str]:
    """Return the products in a file of the package that leave their precision to the machine."""
    found, name = [], path.relative_to(PACKAGE).as_posix()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) and name not in NOT_OF_JAX:
            found.append(f"line {node.lineno}: @")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            module = ast.unparse(node.func.value).split(".")[0]
            if module in ("jax", "jnp", "lax") and "precision" not in [k.arg for k in node.keywords]:
                found.append(f"line {node.lineno}: {node.func.attr}")
    return found


def test_every_product_in_the_source_says_its_precision():
    wrong = {path.relative_to(PACKAGE).as_posix(): found for path in SOURCES if (found := written(path))}
    assert set(wrong) == set(DEFAULT), wrong


def equations(jaxpr):
    """Yield the equations of a program, those of its loops, branches and rules included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            if isinstance(inner, Jaxpr | ClosedJaxpr):
                yield from equations(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def short(function, *args) -> set[str]:
    """Return where in the package a traced program multiplies without asking for every digit.

    A product belongs to the innermost function of the package or of the tests that it comes from: those of functions
    that a user hands in are the user's, and so are their derivatives.
    """
    found = set()
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        if equation.primitive not in PRODUCTS or asks_for_all(equation.params["precision"]):
            continue
        if all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in (*equation.invars, *equation.outvars)):
            frames = [(Path(f.file_name), f.function_name) for f in equation.source_info.traceback.frames]
            path, name = next(f for f in frames if f[0].is_relative_to(PACKAGE) or f[0].is_relative_to(TESTS))
            if path.is_relative_to(PACKAGE) and DEFAULT.get(path.relative_to(PACKAGE).as_posix()) != name:
                found.add(f"{name} in {path.name}")
    return found


def total(tree):
    """Return the sum of all inexact leaves, that of the parts of complex ones."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return sum(jnp.sum(x.real) + jnp.sum(x.imag) if jnp.iscomplexobj(x) else jnp.sum(x) for x in leaves)


LOOP = """
def loop(x, y):
    return lax.fori_loop(0, 3, lambda _, y: jnp.sin(product(x, y)), y)[0]
"""


def test_the_search_sees_loops_and_slopes_and_leaves_users_alone():
    x, y, names = jnp.ones((2, 2)), jnp.ones(2), {"jnp": jnp, "lax": lax}
    exec(compile(LOOP, str(PACKAGE / "file.py"), "exec"), names)
    slope = lambda x, y: jax.jvp(lambda x: names["loop"](x, y), (x,), (x,))  # noqa: E731
    for product, seen in (
        (jnp.matmul, True),
        (lambda x, y: x @ y, False),  # as one handed in
        (lambda x, y: jnp.matmul(x, y, precision="highest"), False),
    ):
        names["product"] = product
        assert bool(short(lambda x, y: names["loop"](x, y), x, y)) == seen
        assert bool(short(lambda x, y: slope(x, y), x, y)) == seen


def test_what_a_user_asks_for_all_products_reaches_the_users_own():
    """As docs/precision.md says."""
    case = next(c for c in CASES if c.name == "sketched_newton")
    own = lambda: {  # noqa: E731
        asks_for_all(e.params["precision"])
        for e in equations(jax.make_jaxpr(lambda d: case.solve(d))(test_contract.data_of(case)).jaxpr)
        if e.primitive in PRODUCTS
    }
    assert own() == {True, False}
    with jax.default_matmul_precision("highest"):
        assert own() == {True}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_solvers(case):
    data = test_contract.data_of(case)
    moving = {name: data[name] for name in case.differentiable}
    slope = jax.grad(lambda some: case.observe(case.solve({**data, **some})))
    assert not short((lambda some: jax.jvp(slope, (some,), (some,))) if case.orders > 1 else slope, moving)


@pytest.mark.parametrize("case", collect("BELIEFS"), ids=lambda c: c.name)
def test_beliefs(case):
    assert not short(jax.grad(lambda data: total(case.call(data))), test_contract_beliefs.data_of(case))


@pytest.mark.parametrize("estimator", collect("ESTIMATORS"), ids=lambda e: e.name)
def test_estimators(estimator):
    assert not short(estimator.estimate, test_contract_estimators.data_of(estimator), jax.random.key(3))


@pytest.mark.parametrize("case", collect("MODULES"), ids=lambda c: c.name)
def test_modules(case):
    module = jax.eval_shape(lambda key: case.make(key, FLOAT), jax.random.key(3))
    both = jax.grad(lambda module, example: total(case.call(module, example)), (0, 1), allow_int=True)
    assert not short(both, module, test_contract_modules.example_of(case))


@pytest.mark.parametrize("sampler", collect("SAMPLERS"), ids=lambda s: s.name)
def test_samplers(sampler):
    assert not short(sampler.draw, test_contract_samplers.data_of(sampler), jax.random.key(3))


@pytest.mark.parametrize("entry", collect("TRANSFORMATIONS"), ids=lambda e: e.name)
def test_transformations(entry):
    loss = test_contract_transformations.loss

    def step(params, key):
        made = optax.with_extra_args_support(entry.make())
        return made.update(entry.gradient(loss, params), made.init(params), params, **entry.extra(loss, params, key))

    assert not short(step, test_contract_transformations.params_of(), jax.random.key(3))
