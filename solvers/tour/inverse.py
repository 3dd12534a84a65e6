"""A tomogram from few views and noisy counts: total variation beside the classical filter."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..core.prox import GroupL1
from ..core.total_variation import Differences
from ..inverse.forward.tomography import Radon, filtered_back_projection
from ..inverse.variational.splitting import admm
from ..problems.inverse import phantom
from .record import Peer, Record, timed

SIZE, VIEWS, NOISE, WEIGHT, TOL = 64, 24, 0.01, 0.15, 1e-3


def run(plots: Path, say) -> list[Record]:
    """Measure, reconstruct twice, compare and draw."""
    dtype = jnp.result_type(float)
    truth = phantom(SIZE, dtype)
    A = Radon(jnp.linspace(0, jnp.pi, VIEWS, endpoint=False, dtype=dtype), SIZE)
    clean = jax.jit(lambda x: A.mv(x))(truth)
    y = clean + NOISE * jnp.max(clean) * jax.random.normal(jax.random.key(17), clean.shape, dtype)
    title = f"a {SIZE} x {SIZE} tomogram from {VIEWS} views with {NOISE:.0%} noise, {dtype}"
    say(title)

    def reconstruct(y):
        return admm(A, y, GroupL1(WEIGHT, axis=0), analysis=Differences(truth), tol=TOL, max_steps=300)

    solved = timed(reconstruct, y)
    sol = solved.output
    classical = timed(lambda y: filtered_back_projection(A, y), y)
    wrong = lambda x: float(np.linalg.norm(x - truth) / np.linalg.norm(truth))  # noqa: E731
    picture = plots / "inverse.png"
    draw(truth, np.asarray(y), np.asarray(classical.output), np.asarray(sol.value), picture)
    record = Record(
        "inverse",
        title,
        "admm with total variation",
        "converged" if bool(sol.converged) else sol.message,
        bool(sol.converged),
        float(sol.error),
        float(sol.tol),
        int(sol.num_steps),
        solved.compile_seconds,
        solved.run_seconds,
        peers=[
            Peer(
                "filtered back-projection",
                classical.run_seconds,
                False,
                wrong(classical.output),
                f"distance from the truth; ours is {wrong(sol.value):.1e} away",
            )
        ],
        pictures=[str(picture)],
        facts={"relative_error": wrong(sol.value), "products": int(sol.linear_steps)},
    )
    for line in record.lines():
        say(line)
    return [record]


def draw(truth, sinogram, classical, found, path: Path) -> None:
    """Draw the truth, what was measured, both reconstructions, and what ours misses."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 5, figsize=(15, 3.1))
    span = {"cmap": "gray", "vmin": 0, "vmax": 0.6}
    shown = (
        ("truth", truth, span),
        (f"{len(sinogram)} views", sinogram, {"cmap": "magma", "aspect": "auto"}),
        ("filtered back-projection", classical, span),
        ("total variation", found, span),
        ("total variation - truth", found - truth, {"cmap": "RdBu", "vmin": -0.2, "vmax": 0.2}),
    )
    for axis, (title, image, how) in zip(axes, shown, strict=True):
        handle = axis.imshow(image, **how)
        axis.set(title=title, xticks=[], yticks=[])
        fig.colorbar(handle, ax=axis, shrink=0.8)
    axes[1].set(xlabel="detector", ylabel="angle")
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)
