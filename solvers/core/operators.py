"""Linear operators between pytrees: products, transposes found by transposition, sums and compositions.

Solvers take plain functions ``x -> A x`` wherever a product is all they need. An operator is for when a caller needs
more of it: its transpose, its shapes, or its parts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from . import vectors
from .precision import matmul
from .static import Static
from .typing import Array, Float


def structure(x: Any) -> Any:
    """Return the shapes and dtypes of a pytree of arrays, as `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), x)


class LinearOperator(eqx.Module):
    """A linear map A from pytrees shaped like `domain` to pytrees shaped like `codomain`.

    A subclass gives `domain` and `mv`. The transpose is the exact one, by transposing the traced program, so a forward
    map written as plain JAX code has its adjoint to the last bit of rounding.
    """

    @property
    @abstractmethod
    def domain(self) -> Any:
        """Shapes and dtypes of what the operator acts on, `jax.ShapeDtypeStruct` as leaves."""

    @abstractmethod
    def mv(self, x: Any) -> Any:
        """Return A x."""

    @property
    def codomain(self) -> Any:
        """Shapes and dtypes of A x."""
        return jax.eval_shape(self.mv, self.domain)

    def transpose_mv(self, y: Any) -> Any:
        """Return A' y."""
        return jax.linear_transpose(self.mv, self.domain)(y)[0]

    @property
    def T(self) -> "LinearOperator":
        """The transpose."""
        return Transposed(self)

    def normal_mv(self, x: Any) -> Any:
        """Return A'A x."""
        return self.transpose_mv(self.mv(x))

    def __call__(self, x: Any) -> Any:
        """Return A x."""
        return self.mv(x)

    def __matmul__(self, other: "LinearOperator") -> "LinearOperator":
        """Return the composition ``A B``."""
        return Composed(self, other)

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        """Return ``A + B``."""
        return Sum(self, other)

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        """Return ``A - B``."""
        return Sum(self, Scaled(other, -1.0))

    def __rmul__(self, factor: Any) -> "LinearOperator":
        """Return ``factor A`` for a number."""
        return Scaled(self, factor)

    def __neg__(self) -> "LinearOperator":
        """Return ``-A``."""
        return Scaled(self, -1.0)

    def matrix(self) -> Float[Array, "m n"]:
        """Return the dense matrix between the ravelled domain and codomain: n products, for small sizes and tests."""
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.domain)
        flat, unravel = ravel_pytree(zero)
        columns = jax.vmap(lambda e: ravel_pytree(self.mv(unravel(e)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
        return columns.T


class FunctionOperator(LinearOperator):
    """A linear function of its first argument as an operator.

    Parameters
    ----------
    function : callable
        ``function(x, args)``, linear in x; static.
    like : PyTree
        Arrays, or `jax.ShapeDtypeStruct`, of the shapes that `function` acts on.
    args : PyTree of arrays, optional
        Differentiable data of `function`.
    """

    function: Callable[[Any, Any], Any] = eqx.field(static=True)
    args: Any
    shapes: Static = eqx.field(static=True)

    def __init__(self, function: Callable[[Any, Any], Any], like: Any, args: Any = None):
        self.function = function
        self.args = args
        self.shapes = Static(structure(like))

    @property
    def domain(self):
        """Shapes of what the function acts on."""
        return self.shapes.tree()

    def mv(self, x):
        """Return ``function(x, args)``."""
        return self.function(x, self.args)


class MatrixOperator(LinearOperator):
    """A dense matrix acting on vectors.

    Attributes
    ----------
    entries : Float[Array, "m n"]
        Differentiable.
    """

    entries: Float[Array, "m n"]

    @property
    def domain(self):
        """A vector of length n."""
        return jax.ShapeDtypeStruct(self.entries.shape[-1:], self.entries.dtype)

    def mv(self, x):
        """Return the product at full precision."""
        return matmul(self.entries, x)


class Identity(LinearOperator):
    """The identity on pytrees shaped like a given one."""

    shapes: Static = eqx.field(static=True)

    def __init__(self, like: Any):
        self.shapes = Static(structure(like))

    @property
    def domain(self):
        """Shapes of what the identity acts on."""
        return self.shapes.tree()

    def mv(self, x):
        """Return x."""
        return x

    def transpose_mv(self, y):
        """Return y."""
        return y


class Transposed(LinearOperator):
    """The transpose of an operator."""

    operator: LinearOperator

    @property
    def domain(self):
        """What the operator maps to."""
        return self.operator.codomain

    def mv(self, x):
        """Return A' x."""
        return self.operator.transpose_mv(x)

    def transpose_mv(self, y):
        """Return A y."""
        return self.operator.mv(y)

    @property
    def T(self):
        """The operator itself."""
        return self.operator


class Composed(LinearOperator):
    """The composition ``outer inner``."""

    outer: LinearOperator
    inner: LinearOperator

    @property
    def domain(self):
        """The inner operator's."""
        return self.inner.domain

    def mv(self, x):
        """Return ``outer (inner x)``."""
        return self.outer.mv(self.inner.mv(x))

    def transpose_mv(self, y):
        """Return ``inner' (outer' y)``."""
        return self.inner.transpose_mv(self.outer.transpose_mv(y))


class Sum(LinearOperator):
    """The sum of two operators with the same domain."""

    first: LinearOperator
    second: LinearOperator

    @property
    def domain(self):
        """Of both."""
        return self.first.domain

    def mv(self, x):
        """Return ``A x + B x``."""
        return jax.tree.map(jnp.add, self.first.mv(x), self.second.mv(x))

    def transpose_mv(self, y):
        """Return ``A' y + B' y``."""
        return jax.tree.map(jnp.add, self.first.transpose_mv(y), self.second.transpose_mv(y))


class Scaled(LinearOperator):
    """An operator times a number."""

    operator: LinearOperator
    factor: Any

    @property
    def domain(self):
        """The operator's."""
        return self.operator.domain

    def mv(self, x):
        """Return ``factor A x``."""
        return vectors.scale(self.factor, self.operator.mv(x))

    def transpose_mv(self, y):
        """Return ``factor A' y``."""
        return vectors.scale(self.factor, self.operator.transpose_mv(y))


class Stacked(LinearOperator):
    """Several operators on one domain, their results side by side in a tuple: the rows of a block column.

    Attributes
    ----------
    blocks : tuple of LinearOperator
        All with the same domain.
    """

    blocks: tuple[LinearOperator, ...]

    @property
    def domain(self):
        """Of all blocks."""
        return self.blocks[0].domain

    def mv(self, x):
        """Return ``(A_1 x, A_2 x, ...)``."""
        return tuple(block.mv(x) for block in self.blocks)

    def transpose_mv(self, y):
        """Return ``A_1' y_1 + A_2' y_2 + ...``."""
        parts = [block.transpose_mv(part) for block, part in zip(self.blocks, y, strict=True)]
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)


class Jacobian(LinearOperator):
    """The Jacobian of a function at a point, linearised once; made by `jacobian`."""

    push: Callable[[Any], Any]
    shapes: Static = eqx.field(static=True)

    @property
    def domain(self):
        """The point's shapes."""
        return self.shapes.tree()

    def mv(self, x):
        """Return J x."""
        return self.push(x)


class Symmetric(LinearOperator):
    """A symmetric operator given by its product, its own transpose; made by `hessian` and `gauss_newton`."""

    product: Callable[[Any], Any]
    shapes: Static = eqx.field(static=True)

    @property
    def domain(self):
        """The point's shapes."""
        return self.shapes.tree()

    def mv(self, x):
        """Return A x."""
        return self.product(x)

    def transpose_mv(self, y):
        """Return A y."""
        return self.product(y)

    @property
    def T(self):
        """The operator itself."""
        return self


def jacobian(function: Callable[[Any], Any], point: Any) -> LinearOperator:
    """Return the Jacobian of `function` at `point`; its products cost no further evaluation of the function."""
    _, push = jax.linearize(function, point)
    return Jacobian(push, Static(structure(point)))


def hessian(function: Callable[[Any], Float[Array, ""]], point: Any) -> LinearOperator:
    """Return the Hessian of a scalar function at `point`, by forward over reverse differentiation.

    The gradient is linearised once, so a product costs about one gradient, and many share the primal pass.
    """
    _, push = jax.linearize(jax.grad(function), point)
    return Symmetric(push, Static(structure(point)))


def gauss_newton(model: Callable[[Any], Any], loss: Callable[[Any], Float[Array, ""]], point: Any) -> LinearOperator:
    """Return ``J' (Hessian of loss at the model's output) J`` for ``loss(model(point))``.

    Positive semidefinite for a convex loss; the generalised Gauss-Newton matrix, and for a negative log likelihood in
    its natural parameters the true Fisher matrix.
    """
    output, push = jax.linearize(model, point)
    _, pull = jax.vjp(model, point)
    _, bend = jax.linearize(jax.grad(loss), output)
    return Symmetric(_GaussNewton(push, bend, pull), Static(structure(point)))


class _GaussNewton(eqx.Module):
    push: Callable
    bend: Callable
    pull: Callable

    def __call__(self, x):
        return self.pull(self.bend(self.push(x)))[0]
