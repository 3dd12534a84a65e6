"""Products of random functions on the sphere on the smallest exact grid, beside the contraction of all coefficients."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..tensor import gaunt_product
from ..tensor.harmonics import gaunt_table, grid_table
from .record import Peer, Record, timed

DEGREE = 8
BATCH = 256


def run(plots: Path, say) -> list[Record]:
    """Multiply, compare with all coefficients at once, draw."""
    title = f"{BATCH} products of functions on the sphere, of degree {DEGREE}"
    say(title)
    keys = jax.random.split(jax.random.key(7))
    decay = jnp.repeat(1 / jnp.arange(1.0, DEGREE + 2), np.arange(1, 2 * DEGREE + 2, 2))
    x, y = (decay * jax.random.normal(k, (BATCH, (DEGREE + 1) ** 2)) for k in keys)
    ours = timed(lambda x, y: gaunt_product(x, y), x, y)
    dense = timed(lambda x, y, G: jnp.einsum("na,nb,abc->nc", x, y, G), x, y, jnp.asarray(gaunt_table(*[DEGREE] * 3)))
    exact = np.einsum(
        "abc,na,nb->nc", gaunt_table(*[DEGREE] * 3), *(np.asarray(v, float) for v in (x, y)), optimize=True
    )

    def distance(z):
        return float(np.max(np.abs(np.asarray(z, float) - exact)) / np.max(np.abs(exact)))

    tol = 1e3 * float(jnp.finfo(x.dtype).eps)
    error, theirs = distance(ours.output), distance(dense.output)
    picture = plots / "tensor.png"
    draw(x[0], y[0], ours.output[0], picture)
    peer = Peer("all coefficients", dense.run_seconds, theirs <= tol, theirs, "einsum over 81 x 81 x 81")
    record = Record(
        "tensor", title, "gaunt_product", "exact to rounding" if error <= tol else "above the tolerance", error <= tol,
        error, tol, 1, ours.compile_seconds, ours.run_seconds, peers=[peer], pictures=[str(picture)],
    )  # fmt: skip
    for line in record.lines():
        say(line)
    return [record]


def draw(x, y, z, path: Path) -> None:
    """Draw two functions and their product by latitude and longitude."""
    import matplotlib.pyplot as plt

    table = grid_table(DEGREE, 90, 180)
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained", sharey=True)
    for ax, c, name in zip(axes, (x, y, z), ("f", "g", "f g, to degree 8"), strict=True):
        field = (np.asarray(c, float) @ table).reshape(90, 180)
        size = np.max(np.abs(field))
        image = ax.imshow(field, cmap="RdBu_r", vmin=-size, vmax=size, extent=(0, 360, -90, 90), aspect="auto")
        ax.set(title=name, xlabel="longitude (degrees)")
        figure.colorbar(image, ax=ax)
    axes[0].set_ylabel("latitude (degrees)")
    figure.savefig(path, dpi=150)
    plt.close(figure)
