"""A pytree as one static argument of ``jax.jit``."""

from __future__ import annotations

from typing import Any

import jax


class Static:
    """A pytree of hashable leaves, hashed and compared by them and by its structure."""

    def __init__(self, tree: Any):
        leaves, self.structure = jax.tree.flatten(tree)
        self.leaves = tuple(leaves)

    def tree(self) -> Any:
        """Return the pytree."""
        return jax.tree.unflatten(self.structure, self.leaves)

    def __hash__(self) -> int:
        return hash((self.leaves, self.structure))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and (self.leaves, self.structure) == (other.leaves, other.structure)
