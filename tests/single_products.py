"""Products of float32 as an accelerator takes them, on any machine: a module of the suite, switched on by a variable.

An accelerator rounds both factors of a float32 product to ten bits (TF32) unless the program asks for more. With
``SOLVERS_TEST_TF32=1 JAX_ENABLE_X64=0 pytest`` the products that do not ask are rounded so on a CPU too: whatever then
fails, in a solver or in a test's own check, leans on digits that it has not asked for.
"""

import jax.numpy as jnp
from jax import lax
from jax._src.interpreters.mlir import _lowerings as lowerings  # the rules that there are: no public way to them
from jax.interpreters import mlir

BITS = 10
FULL = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
SHORT = (jnp.float32, jnp.complex64)
PRODUCTS = (lax.dot_general_p, lax.conv_general_dilated_p)


def asks_for_all(precision) -> bool:
    """Whether the precision of a product, as its equation states it, keeps all digits of both factors."""
    both = precision if isinstance(precision, tuple) else (precision, precision)
    return all(one == lax.Precision.HIGHEST for one in both)


def shortened(x):
    """Round float32, and the parts of complex64, to the digits of TF32."""
    if x.dtype == jnp.complex64:
        return lax.complex(shortened(x.real), shortened(x.imag))
    return lax.reduce_precision(x, 8, BITS) if x.dtype == jnp.float32 else x


def switch_on():
    """Let every product on a CPU round its factors that does not ask for all digits."""
    for primitive in PRODUCTS:
        mlir.register_lowering(primitive, _lowering(primitive), platform="cpu")


def _lowering(primitive):
    entry = lowerings[primitive]
    usual = getattr(entry, "rule", entry)

    def short(x, y, **params):
        return primitive.bind(shortened(x), shortened(y), **{**params, "precision": FULL})

    def rule(context, x, y, *, precision, **params):
        if asks_for_all(precision) or context.avals_in[0].dtype not in SHORT:
            return usual(context, x, y, precision=precision, **params)
        return mlir.lower_fun(short, multiple_results=False)(context, x, y, **params)

    return rule
