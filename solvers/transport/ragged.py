"""Problems of different sizes in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core import checks
from ..core.typing import Float


def stack_ragged(
    points: Sequence, weights: Sequence | None = None, *, length: int | None = None
) -> tuple[Float[np.ndarray, "batch length d"], Float[np.ndarray, "batch length"]]:
    """Stack clouds of different sizes for ``jax.vmap``, padded with points of zero weight.

    A point without weight changes nothing: potentials, plan and costs on the others are those of the cloud alone, to
    rounding. Host only: it looks at shapes, not under ``jax.jit``.

    Parameters
    ----------
    points : sequence of Float[Array, "n_i d"]
        The clouds.
    weights : sequence of Float[Array, "n_i"], optional
        Their weights; uniform of sum one by default.
    length : int, optional
        Points of every padded cloud, at least the longest. By default that; round it up yourself to compile less often.

    Returns
    -------
    Float[ndarray, "batch length d"], Float[ndarray, "batch length"]
        Points, a cloud's first one repeated behind its end, and weights, zero there.

    Raises
    ------
    ValueError
        If there are no clouds, shapes do not fit, or `length` is too short.

    Examples
    --------
    >>> import numpy as np
    >>> from solvers import stack_ragged
    >>> x, a = stack_ragged([np.zeros((2, 3)), np.ones((4, 3))])
    >>> x.shape, a[0].tolist()
    ((2, 4, 3), [0.5, 0.5, 0.0, 0.0])
    """
    name = "stack_ragged"
    clouds = [np.asarray(z) for z in points]
    if not clouds or any(z.ndim != 2 or len(z) == 0 or z.shape[1] != clouds[0].shape[1] for z in clouds):
        checks.fail(name, "points", "arrays (n_i, d) of one d, none empty", [z.shape for z in clouds])
    longest = max(len(z) for z in clouds)
    length = longest if length is None else length
    if length < longest:
        checks.fail(name, "length", f"at least {longest}", length)
    dtype = np.result_type(*clouds, np.float32)
    uniform = [np.full(len(z), 1 / len(z), dtype) for z in clouds]
    given = uniform if weights is None else [np.asarray(w) for w in weights]
    if [w.shape for w in given] != [z.shape[:1] for z in clouds]:
        checks.fail(name, "weights", f"vectors of {[len(z) for z in clouds]} entries", [w.shape for w in given])
    stacked = np.stack([np.concatenate([z, np.repeat(z[:1], length - len(z), 0)]) for z in clouds])
    return stacked.astype(dtype), np.stack([np.pad(w, (0, length - len(w))) for w in given]).astype(dtype)
