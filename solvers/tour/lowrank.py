"""The low-rank part of a photograph from half of its pixels, beside filling in their mean."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ..lowrank.operators import Entries
from ..lowrank.sensing import matrix_sensing
from .record import Peer, Record, timed

RANK, SHARE = 6, 0.5


def photograph() -> np.ndarray:
    """Return a small grey photograph that scikit-learn ships, values from 0 to 1."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg").mean(-1)[::5, ::5] / 255


def run(plots: Path, say) -> list[Record]:
    """Hide pixels, recover them, draw."""
    dtype = jnp.result_type(float)
    u, s, vt = np.linalg.svd(photograph(), full_matrices=False)
    truth = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
    n, p = truth.shape
    rng = np.random.default_rng(11)
    rows, cols = np.nonzero(rng.random((n, p)) < SHARE)
    seen = jnp.asarray(truth[rows, cols], dtype)
    title = f"the rank-{RANK} part of a {n} x {p} photograph from {len(rows):,} of its {n * p:,} pixels, {dtype}"
    say(title)
    operator = Entries(jnp.asarray(rows), jnp.asarray(cols), (n, p))
    solved = timed(lambda b: matrix_sensing(operator, b, RANK), seen)
    sol = solved.output
    hidden = np.ones((n, p), bool)
    hidden[rows, cols] = False
    wrong = lambda x: float(np.linalg.norm((x - truth)[hidden]) / np.linalg.norm(truth[hidden]))  # noqa: E731
    mean = np.where(hidden, truth[rows, cols].mean(), truth)
    picture = plots / "lowrank.png"
    draw(np.where(hidden, np.nan, truth), np.asarray(sol.matrix), truth, picture)
    record = Record(
        "lowrank",
        title,
        "matrix_sensing",
        "converged" if bool(sol.converged) else sol.message,
        bool(sol.converged),
        float(sol.error),
        float(sol.tol),
        int(sol.num_steps),
        solved.compile_seconds,
        solved.run_seconds,
        peers=[Peer("mean of the pixels seen", 0.0, False, wrong(mean), "error of the hidden pixels")],
        pictures=[str(picture)],
        facts={"hidden_error": wrong(np.asarray(sol.matrix))},
    )
    for line in record.lines():
        say(line)
    return [record]


def draw(seen, found, truth, path: Path) -> None:
    """Draw what was seen, what was recovered, and what it misses."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(10, 2.8))
    shown = (("seen", seen, "gray"), ("recovered", found, "gray"), ("recovered - truth", found - truth, "RdBu"))
    for axis, (title, image, colours) in zip(axes, shown, strict=True):
        handle = axis.imshow(image, cmap=colours)
        axis.set(title=title, xticks=[], yticks=[])
        fig.colorbar(handle, ax=axis, shrink=0.8)
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)
