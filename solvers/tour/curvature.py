"""A digit classifier: natural gradient beside a dense solve; spectrum and trace of its Hessian beside NumPy."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from ..core.precision import eps
from ..core.vectors import axpy, norm
from ..curvature import EmpiricalFisher, extreme_eigenpairs, head_hessian, spectral_density, trace
from ..curvature import hessian as hessian_of
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
    return [record, spectrum(loss, weights, pixels, labels, plots, say)]


def spectrum(loss, weights, pixels, labels, plots: Path, say) -> Record:
    """Name the largest eigenvalues and the trace of the Hessian from products, beside the dense matrix."""
    title = "spectrum of the classifier's Hessian: four largest of 640 eigenvalues, density, trace"
    say(title)

    def mean(w):
        return jnp.mean(jax.vmap(loss, (None, 0, 0))(w, pixels, labels))

    def products(w):
        operator, key = hessian_of(mean, w), jax.random.key(7)
        return (
            extreme_eigenpairs(operator, key, 4),
            spectral_density(operator, key, num_steps=24, num_probes=4),
            trace(operator, key, rtol=0.02, max_products=256),
        )

    def dense(w):
        return jnp.linalg.eigvalsh(jax.hessian(lambda v: mean(v.reshape(10, 64)))(w.ravel()))

    ours, other = timed(products, weights), timed(dense, weights)
    pairs, density, total = ours.output
    exact = np.asarray(other.output)
    error = float(np.max(np.abs(np.asarray(pairs.value) / exact[::-1][:4] - 1)))
    low, high = (float(end) for end in total.interval())
    tol = float(10 * pairs.tol)
    picture = plots / "curvature_spectrum.png"
    draw_spectrum(exact, density, np.asarray(pairs.value), picture)
    done = bool(pairs.converged & total.converged) and error <= tol
    peer = Peer("dense eigenvalues", other.run_seconds, True, 0.0, "forms the 640 x 640 matrix")
    record = Record(
        "curvature", title, "extreme_eigenpairs", pairs.message, done, error, tol, int(pairs.num_steps),
        ours.compile_seconds, ours.run_seconds, peers=[peer], pictures=[str(picture)],
        facts={"trace from": low, "to": high, "true trace": float(exact.sum()), "products": int(total.num_products)},
    )  # fmt: skip
    for line in record.lines():
        say(line)
    return record


def draw_spectrum(exact: np.ndarray, density, largest: np.ndarray, path: Path) -> None:
    """Draw the share of eigenvalues below, by products and by NumPy, and the largest."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2))
    grid = np.geomspace(1e-5, 1.05, 600) * exact[-1]
    axes.step(
        np.maximum(exact, grid[0]),
        np.arange(1, len(exact) + 1) / len(exact),
        color="#999999",
        lw=3,
        label="dense eigenvalues",
    )
    axes.plot(grid, density.below(jnp.asarray(grid)), color="#0072B2", label="spectral_density, 96 products")
    axes.plot(largest, np.ones_like(largest), "|", color="#D55E00", ms=14, label="extreme_eigenpairs")
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="share of eigenvalues below", xscale="log")
    axes.set_title("640 weights of a digit classifier")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def draw(diagonal: np.ndarray, path: Path) -> None:
    """Draw the curvature of the loss by pixel."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4, 3.5))
    figure.colorbar(axes.imshow(diagonal, cmap="viridis"), label="curvature, summed over classes")
    axes.set(xlabel="pixel column", ylabel="pixel row", title="curvature of a digit classifier's loss")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
