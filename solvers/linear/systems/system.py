"""Linear systems as a solver sees them: products, diagonals, sweeps; dense arrays and matrix-free operators."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.checks import fail, float_array
from ...core.precision import matmul
from ...core.typing import Array, Float


class Layout(eqx.Module):
    """A system laid out for iterating on: vectors become ``pack(x)``, a pytree that products and sweeps work on.

    Packing permutes entries and nothing else, so inner products and norms are those of the unpacked vectors.
    """

    def pack(self, x: Array) -> Any:
        """Return `x` in this layout."""
        return x

    def unpack(self, y: Any) -> Array:
        """Undo `pack`."""
        return y

    @abstractmethod
    def mv(self, y: Any) -> Any:
        """Return A y."""

    @abstractmethod
    def diagonal(self) -> Any:
        """Return the diagonal of A, a pytree that broadcasts against a packed vector leaf by leaf."""

    def row_bound(self) -> Array:
        """Return ``max_i sum_j |a_ij| / |a_ii|``, a bound on the eigenvalues of D^-1 A."""
        raise NotImplementedError

    def sweeper(self, omega) -> Callable:
        """Return ``sweep(y, b, reverse=False)``: one SOR sweep in this layout's order, or in the opposite one."""
        raise NotImplementedError


class System(eqx.Module):
    """A square linear system's matrix. Values are traced, structure is static."""

    @abstractmethod
    def mv(self, x: Array) -> Array:
        """Return A x in the shape of the right-hand side."""

    @abstractmethod
    def layout(self, shape: tuple[int, ...], *, sweeps: bool) -> Layout:
        """Return the layout to iterate in, one that can sweep if asked."""

    @abstractmethod
    def check(self, function: str, b: Array) -> None:
        """Raise unless the system fits a right-hand side like `b`."""

    def like(self, b: Array) -> "System":
        """Return the system with what it can only know from a right-hand side filled in."""
        return self

    @abstractmethod
    def diagonal(self) -> Array:
        """Return the diagonal of A, which broadcasts against a right-hand side."""

    def extent(self, b: Array) -> tuple[Array, Array]:
        """Return the least and the largest size that entries of the diagonal have."""
        size = jnp.abs(self.diagonal())
        return jnp.min(size), jnp.max(size)

    @abstractmethod
    def times(self, unit: Array) -> "System":
        """Return the system of ``unit A``, for a power of two."""

    @property
    @abstractmethod
    def transposed(self) -> "System":
        """The transpose."""

    relaxable: eqx.AbstractClassVar[bool]


class Dense(System, Layout):
    """A matrix stored in full; sweeps run in natural order by triangular solves.

    Parameters
    ----------
    matrix : Float[Array, "n n"]
        Traced, differentiable.
    """

    matrix: Float[Array, "n n"]
    relaxable = True

    def __init__(self, matrix: Array):
        self.matrix = matrix

    def mv(self, x):
        """Return A x."""
        return matmul(self.matrix, x)

    def layout(self, shape, *, sweeps):
        """Return itself: natural order needs no rearranging."""
        return self

    def check(self, function, b):
        """Raise unless the matrix is (n, n) for b of length n."""
        n = self.matrix.shape
        if b.ndim != 1 or n != (b.shape[0], b.shape[0]):
            expected = f"(n, n) with n = len(b) = {b.shape[0]}" if b.ndim == 1 else f"for a vector b, not b {b.shape}"
            fail(function, "A", expected, n)

    def times(self, unit):
        """Return the system of ``unit A``."""
        return Dense(unit * self.matrix)

    @property
    def transposed(self):
        """The transpose."""
        return Dense(self.matrix.T)

    def diagonal(self):
        """Return the diagonal."""
        return jnp.diagonal(self.matrix)

    def row_bound(self):
        """Return the largest absolute row sum over the diagonal."""
        return jnp.max(jnp.sum(jnp.abs(self.matrix), 1) / jnp.abs(self.diagonal()))

    def sweeper(self, omega):
        """Return the sweep ``x + (D / omega + L)^-1 (b - A x)`` (1); reversed, with the upper triangle."""
        scaled = jnp.diag(self.diagonal() / omega)
        lower, upper = scaled + jnp.tril(self.matrix, -1), scaled + jnp.triu(self.matrix, 1)

        def sweep(y, b, reverse=False):
            triangle = upper if reverse else lower
            r = (b - self.mv(y))[:, None]
            # (1)
            return y + lax.linalg.triangular_solve(triangle, r, left_side=True, lower=not reverse)[:, 0]

        return sweep


class MatrixFree(System, Layout):
    """A symmetric operator known by its product and its diagonal; for the Chebyshev and flexible solvers.

    Parameters
    ----------
    function : callable
        ``function(x, args)`` returns A x, in the shape of x; static, traced once.
    diagonal : array, optional
        The diagonal of A, in the shape of x; ones if omitted, which makes Jacobi scaling the identity.
    args : PyTree
        Differentiable data of `function`.
    bound : scalar, optional
        An upper bound on the eigenvalues of D^-1 A; without one, `chebyshev_cg` estimates it by power iteration.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import MatrixFree, chebyshev_cg
    >>> system = MatrixFree(lambda x, d: d * x + x.sum(), jnp.array([3.0, 4.0]), args=jnp.array([2.0, 3.0]))
    >>> bool(chebyshev_cg(system, jnp.array([4.0, 5.0])).converged)
    True
    """

    function: Callable[[Array, Any], Array] = eqx.field(static=True)
    entries: Array | None = None
    args: Any = None
    bound: Array | None = None
    unit: Array | None = None
    unscaled: bool = eqx.field(static=True, default=False)
    relaxable = False

    def __init__(self, function: Callable, diagonal=None, *, args: Any = None, bound=None):
        self.function = function
        self.unit, self.unscaled = None, diagonal is None
        self.entries = None if diagonal is None else float_array("MatrixFree", "diagonal", diagonal)
        self.args = args
        self.bound = None if bound is None else float_array("MatrixFree", "bound", bound)

    def mv(self, x):
        """Return ``function(x, args)``."""
        y = jax.jit(self.function)(x, self.args)
        return y if self.unit is None else self.unit * y

    def layout(self, shape, *, sweeps):
        """Return itself."""
        return self

    def check(self, function, b):
        """Raise unless the product keeps the shape of b."""
        out = jax.eval_shape(self.mv, b)
        if getattr(out, "shape", None) != b.shape:
            fail(function, "A", f"a function that returns an array of shape {b.shape}", out)

    def like(self, b):
        """Return the operator with a diagonal of ones where none was given."""
        if self.entries is not None:
            return self
        return eqx.tree_at(lambda s: s.entries, self, jnp.ones_like(b), is_leaf=lambda x: x is None)

    def extent(self, b):
        """As for any system; without a diagonal, twice the largest entry of a product."""
        if not self.unscaled:
            return super().extent(b)
        size = jnp.max(jnp.abs(self.mv(any_vector(b.shape, b.dtype))))
        return size, size

    def times(self, unit):
        """Return the operator times `unit`; ones in the place of a diagonal stay."""
        unit_before = 1 if self.unit is None else self.unit
        entries = self.entries if self.unscaled or self.entries is None else unit * self.entries
        bound = unit * self.bound if self.unscaled and self.bound is not None else self.bound
        changed = (unit * unit_before, entries, bound)
        return eqx.tree_at(lambda s: (s.unit, s.entries, s.bound), self, changed, is_leaf=lambda x: x is None)

    @property
    def transposed(self):
        """The operator itself, taken to be symmetric."""
        return self

    def diagonal(self):
        """Return the diagonal given, or one."""
        return jnp.ones(()) if self.entries is None else self.entries

    def row_bound(self):
        """Return the bound given, or 1.1 times the value that twelve steps of the power method reach."""
        if self.bound is not None:
            return self.bound
        d = self.diagonal()
        x = any_vector(d.shape, d.dtype)

        def step(_, x):
            y = self.mv(x) / d
            return y / jnp.sqrt(jnp.sum(y * y))

        x = lax.fori_loop(0, 12, step, x)
        return 1.1 * jnp.sqrt(jnp.sum((self.mv(x) / d) ** 2))


def any_vector(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return a vector that has a part along every other one."""
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape), dtype)


def settle(x: Any) -> Any:
    """Keep XLA from fusing what makes x into what uses it, on the CPU.

    Fused into a product on a grid, a value is computed again at every neighbour of every neighbour. On accelerators
    that is often cheaper than another kernel, and XLA weighs it; on the CPU it fuses whatever it can.
    """
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def repeat(step: Callable[[Any], Any], state: Any, count: int) -> Any:
    """Return the state after `count` steps: a loop on the CPU, written out on accelerators.

    There a loop costs copies and launches, and XLA can make one kernel of several steps where a grid is small.
    """

    def times(unroll):
        return lambda state: lax.fori_loop(0, count, lambda _, s: step(s), state, unroll=unroll)

    return lax.platform_dependent(state, cpu=times(1), default=times(count if count <= 16 else 8))


def as_system(function: str, A: Any, dtype) -> System:
    """Return `A` as a `System` in ``dtype``: a system, a dense array, or an operator with ``as_matrix``."""
    if hasattr(A, "as_matrix"):
        A = A.as_matrix()
    if not isinstance(A, System):
        if hasattr(A, "tocoo"):
            expected = "a system; a SciPy matrix comes over by `SparseRows.from_scipy(A)`, with multigrid by `AMG(A)`"
            fail(function, "A", expected, type(A).__name__, TypeError)
        if callable(A):
            fail(
                function, "A", "a system; wrap a function and its diagonal in `MatrixFree`", type(A).__name__, TypeError
            )
        A = Dense(float_array(function, "A", A, ndim=2))
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, A)
