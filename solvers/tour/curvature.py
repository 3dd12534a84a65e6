"""A digit classifier's natural gradient from 256 per-example gradients, beside a dense solve; the weight of pixels."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from ..core.precision import eps
from ..core.vectors import axpy, norm
from ..curvature import EmpiricalFisher, head_hessian
from .record import Peer, Record, timed

DAMPING = 1e-2


def run(plots: Path, say) -> list[Record]:
    """Solve, compare with the dense matrix, draw."""
    data, target = load_digits(return_X_y=True)
    pixels, labels = jnp.asarray(data[:256] / 16), jnp.asarray(target[:256])
    weights = 0.3 * jax.random.normal(jax.random.key(7), (10, 64), pixels.dtype)

    def loss(w, x, y):
        return -jax.nn.log_softmax(w @ x)[y]

    grads = jax.vmap(jax.grad(loss), (None, 0, 0))(weights, pixels, labels)
    title = "natural gradient of a digit classifier: 640 weights, 256 gradients"
    say(title)

    def solve(grads):
        return EmpiricalFisher(grads, DAMPING).solve(jnp.mean(grads, axis=0))

    def dense(grads):
        flat = grads.reshape(256, -1)
        fisher = DAMPING * jnp.eye(640) + flat.T @ flat / 256
        return jnp.linalg.solve(fisher, jnp.mean(flat, axis=0)).reshape(10, 64)

    ours, other = timed(solve, grads), timed(dense, grads)
    mean = jnp.mean(grads, axis=0)
    fisher = EmpiricalFisher(grads, DAMPING)

    def residual(x):
        return float(norm(axpy(-1, mean, fisher.mv(x))) / norm(mean))

    tol = 1e3 * eps(grads.dtype)
    error = residual(ours.output)
    picture = plots / "curvature.png"
    draw(np.asarray(jnp.sum(head_hessian(pixels, weights).diagonal(), axis=0)).reshape(8, 8), picture)
    peer_error = residual(other.output)
    peer = Peer("dense solve", other.run_seconds, peer_error <= tol, peer_error, "forms the 640 x 640 matrix")
    done = error <= tol
    record = Record(
        "curvature", title, "EmpiricalFisher", "solved" if done else "residual above the tolerance", done, error, tol,
        1, ours.compile_seconds, ours.run_seconds, peers=[peer], pictures=[str(picture)],
        facts={"trace": float(head_hessian(pixels, weights).trace())},
    )  # fmt: skip
    for line in record.lines():
        say(line)
    return [record]


def draw(diagonal: np.ndarray, path: Path) -> None:
    """Draw the curvature of the loss by pixel."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4, 3.5))
    figure.colorbar(axes.imshow(diagonal, cmap="viridis"), label="curvature, summed over classes")
    axes.set(xlabel="pixel column", ylabel="pixel row")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
