"""Groups of parameters that go together, such as the channels of a convolution, and the smaller arrays without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core import checks
from ..core.precision import binary_exponent
from ..core.typing import Array, Bool, Float

Slices: TypeAlias = tuple[str, int] | tuple[str, int, Sequence[int]]
"""``(path, axis)``, or ``(path, axis, units)`` when slice i along the axis belongs to unit ``units[i]`` and not i."""


@dataclass(frozen=True)
class Units:
    """A family of units of a network, such as the channels of one layer, that can be removed one by one.

    Attributes
    ----------
    members : sequence of (path, axis) or (path, axis, units)
        What belongs to a unit: slice i of a parameter along an axis is part of unit i. A unit whose members are all
        zero must have no influence: weights and bias that make a channel, scale and shift of its normalisation.
        Paths are the keys joined by "/", ``"conv1/kernel"``.
    followers : sequence of the same
        Slices that read the unit, cut by `shrink` along with it: the next layer's weights along its input axis. Where
        channels were flattened, give `units`: ``np.arange(h * w * c) % c`` for features in the order (h, w, c).
    """

    members: Sequence[Slices]
    followers: Sequence[Slices] = ()


@dataclass(frozen=True, eq=False)
class Groups:
    """Which slices of which parameters belong to which of the groups 0, 1, ...; made by `parameter_groups`.

    Attributes
    ----------
    count : int
        Number of groups.
    family : Int[np.ndarray, "count"]
        Which of the `Units` each came from.
    size : Int[np.ndarray, "count"]
        Number of parameters in each.
    members : mapping
        From the path of a parameter to an axis and, for every slice along it, its group or -1.
    cuts : mapping
        From a path to ``(axis, groups)`` of all the axes along which `shrink` cuts, followers included.
    """

    count: int
    family: np.ndarray
    size: np.ndarray
    members: Mapping[str, tuple[int, np.ndarray]]
    cuts: Mapping[str, Sequence[tuple[int, np.ndarray]]] = field(repr=False)

    def sums(self, function: Callable[..., Array], *trees: Any) -> Float[Array, " count"]:
        """Return the sum of ``function(*leaves)``, an array like the leaves, over every group; float32 at least."""
        total = None
        for path, *leaves in _with_paths(*trees):
            if path not in self.members:
                continue
            axis, groups = self.members[path]
            wide = [x if x.dtype.itemsize >= 4 else x.astype(jnp.float32) for x in leaves]
            slices = jnp.sum(function(*wide), axis=tuple(i for i in range(leaves[0].ndim) if i != axis))
            inside = np.flatnonzero(groups >= 0)
            part = jnp.zeros(self.count, slices.dtype).at[groups[inside]].add(slices[inside])
            total = part if total is None else total + part.astype(total.dtype)
        return jnp.zeros(self.count) if total is None else total

    def unit(self, tree: Any) -> Float[Array, ""]:
        """Return the power of two above the largest entry of all groups; 1 where it is zero or not finite."""
        leaves = [x for path, x in _with_paths(tree) if path in self.members and x.size]
        sizes = [jnp.max(jnp.abs(x if x.dtype.itemsize >= 4 else x.astype(jnp.float32))) for x in leaves]
        dtype = max((x.dtype for x in sizes), key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
        largest = jnp.max(jnp.stack([x.astype(dtype) for x in sizes]), initial=0) if sizes else jnp.zeros((), dtype)
        return jnp.ldexp(jnp.ones((), dtype), binary_exponent(largest))

    def spread(self, values: Array, tree: Any, *, outside: Any) -> Any:
        """Return a tree of arrays that broadcast against the leaves: a group's entry of `values`, else `outside`."""

        def leaf(path, x):
            if path not in self.members:
                return jnp.full((1,) * x.ndim, outside, values.dtype)
            axis, groups = self.members[path]
            along = jnp.where(groups >= 0, values[np.maximum(groups, 0)], jnp.asarray(outside, values.dtype))
            return along.reshape([-1 if i == axis else 1 for i in range(x.ndim)])

        leaves = [leaf(path, x) for path, x in _with_paths(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    def norms(self, params: Any) -> Float[Array, " count"]:
        """Return the Euclidean norm of every group."""
        return jnp.sqrt(self.sums(lambda x: x**2, params))

    def zero(self, params: Any) -> Bool[Array, " count"]:
        """Whether all parameters of a group are exactly zero."""
        return self.sums(lambda x: (x != 0).astype(x.dtype), params) == 0


def _with_paths(*trees: Any):
    named = [jax.tree_util.tree_leaves_with_path(tree) for tree in trees]
    for entries in zip(*named, strict=True):
        yield (jax.tree_util.keystr(entries[0][0], simple=True, separator="/"), *(x for _, x in entries))


def parameter_groups(params: Any, families: Sequence[Units]) -> Groups:
    """Return the groups of a network's parameters that `hesso` prunes and `shrink` cuts.

    Parameters
    ----------
    params : PyTree of arrays
        The network's parameters, or `jax.ShapeDtypeStruct`; only shapes are read.
    families : sequence of Units
        One for every set of units that can go independently.

    Returns
    -------
    Groups
        Numbered through the families.

    Raises
    ------
    ValueError
        When a path does not exist, an axis or the lengths of a family's slices do not fit, or groups overlap.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Units, parameter_groups
    >>> params = {"hidden": {"w": jnp.ones((3, 5)), "b": jnp.ones(5)}, "out": {"w": jnp.ones((5, 2))}}
    >>> groups = parameter_groups(params, [Units([("hidden/w", 1), ("hidden/b", 0)], followers=[("out/w", 0)])])
    >>> print(groups.count, groups.size)
    5 [4 4 4 4 4]
    """
    name = "parameter_groups"
    shapes = {path: np.shape(leaf) for path, leaf in _with_paths(params)}
    members: dict[str, tuple[int, np.ndarray]] = {}
    cuts: dict[str, list[tuple[int, np.ndarray]]] = {}
    family: list[int] = []
    size: list[np.ndarray] = []
    if not all(isinstance(units, Units) for units in families):
        checks.fail(name, "families", "a sequence of Units", [type(units).__name__ for units in families], TypeError)
    if not families or not all(units.members for units in families):
        checks.fail(name, "families", "at least one, each with members", families)
    for number, units in enumerate(families):
        start = len(family)
        read = [_slices(name, shapes, entry) for entry in (*units.members, *units.followers)]
        length = 1 + max(int(own.max()) for _, _, own in read)
        counts = np.zeros(length, int)
        for i, (path, axis, own) in enumerate(read):
            if len(np.unique(own)) != length:
                checks.fail(
                    name, "families", f"such that slices cover all {length} units of their family", (path, axis)
                )
            if i < len(units.members):
                counts += np.bincount(own, minlength=length) * (
                    int(np.prod(shapes[path])) // max(shapes[path][axis], 1)
                )
                if path in members:
                    checks.fail(name, "families", f"without overlap, and `{path}` in one place only", "it twice")
                members[path] = (axis, own + start)
            known = [cut for cut in cuts.setdefault(path, []) if cut[0] == axis]
            if known:
                checks.fail(name, "families", f"without overlap, and axis {axis} of `{path}` in one place", "it twice")
            cuts[path].append((axis, own + start))
        family += [number] * length
        size.append(counts)
    return Groups(len(family), np.array(family), np.concatenate(size), members, cuts)


def _slices(name: str, shapes: Mapping[str, tuple[int, ...]], entry: Slices) -> tuple[str, int, np.ndarray]:
    path, axis, *rest = entry
    if path not in shapes:
        checks.fail(name, "families", f"made of the paths {sorted(shapes)}", path)
    ndim = len(shapes[path])
    if not -ndim <= axis < ndim:
        checks.fail(name, "families", f"such that `{path}` has the axis", axis)
    axis %= ndim
    own = np.arange(shapes[path][axis]) if not rest else np.asarray(rest[0])
    if own.shape != (shapes[path][axis],) or not len(own) or own.min() < 0:
        wanted = f"such that `units` of `{path}` names one for each of {shapes[path][axis]} slices"
        checks.fail(name, "families", wanted, own)
    return path, axis, own


def shrink(params: Any, groups: Groups) -> Any:
    """Return the parameters without the groups that are exactly zero, as smaller arrays.

    Parameters
    ----------
    params : PyTree of arrays
        Concrete: shapes depend on the numbers, so this runs on the host.
    groups : Groups
        Of `parameter_groups`.

    Returns
    -------
    PyTree
        The same structure; the network computes what it computed with `params`, provided that zero members make a
        unit zero. Of a family that is zero altogether one unit is kept.

    Raises
    ------
    TypeError
        Inside ``jax.jit``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Units, parameter_groups, shrink
    >>> params = {"w": jnp.array([[1.0, 0.0, 2.0]]), "v": jnp.ones((3, 1))}
    >>> small = shrink(params, parameter_groups(params, [Units([("w", 1)], followers=[("v", 0)])]))
    >>> print(small["w"], small["v"].shape)
    [[1. 2.]] (2, 1)
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(params)):
        checks.fail("shrink", "params", "concrete arrays: shapes depend on them", "traced ones", TypeError)
    gone = np.array(groups.zero(params))
    for number in np.unique(groups.family):
        own = np.flatnonzero(groups.family == number)
        if gone[own].all():
            gone[own[0]] = False

    def cut(path, x):
        for axis, units in groups.cuts.get(path, ()):
            x = jnp.take(x, np.flatnonzero(~gone[units]), axis=axis)
        return x

    leaves = [cut(path, jnp.asarray(x)) for path, x in _with_paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
