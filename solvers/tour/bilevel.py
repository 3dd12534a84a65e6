"""One weight decay for each pixel of a digit classifier, tuned through the trained weights."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..bilevel import CGSolve, hypergradient
from .record import Record, timed

STEPS, RATE = 40, 0.5


def digits(dtype):
    """Return standardised training and validation halves: threes against eights, few to train on."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, (3, 8))
    X, y = pixels[chosen] / 16, np.where(labels[chosen] == 8, 1.0, -1.0)
    order = np.random.default_rng(7).permutation(len(y))
    X, y = jnp.asarray(X[order], dtype), jnp.asarray(y[order], dtype)
    return (X[:60], y[:60]), (X[60:], y[60:])


def lower(decay, w, data):
    """Return ridge regression with a weight decay a pixel."""
    X, y = data[0]
    return jnp.mean((X @ w - y) ** 2) / 2 + jnp.sum(jnp.exp(decay) * w**2) / 2


def upper(decay, w, data):
    """Return the validation loss."""
    X, y = data[1]
    return jnp.mean((X @ w - y) ** 2) / 2


def train(decay, data):
    """Return the minimiser of the lower problem."""
    X, y = data[0]
    H = X.T @ X / X.shape[0] + jnp.diag(jnp.exp(decay))
    return jnp.linalg.solve(H, X.T @ y / X.shape[0])


def run(plots: Path, say) -> list[Record]:
    """Tune, compare with one decay for all, draw."""
    data = digits(jnp.result_type(float))
    title = "64 weight decays of a digit classifier, tuned by gradients through its training"
    say(title)

    def tune(start):
        def step(state, _):
            decay, size = state
            w = train(decay, data)
            g = hypergradient(upper, lower, decay, w, data, solver=CGSolve())
            size = size + jnp.sum(g.value**2)
            move = RATE * 8 * g.value / jnp.sqrt(size)
            return (jnp.clip(decay - move, -9, 5), size), (upper(decay, w, data), g.linear, g.stationarity)

        return jax.lax.scan(step, (start, jnp.zeros((), start.dtype)), None, length=STEPS)

    grid = jnp.linspace(-8, 2, 41)
    shared = jax.vmap(lambda c: upper(None, train(jnp.full(64, c), data), data))(grid)
    best = grid[jnp.argmin(shared)]
    tuned = timed(tune, jnp.full(64, best))
    (decay, _), (losses, linear, stationarity) = tuned.output
    error = float(jnp.max(linear))
    tol = 1e-3 if losses.dtype == jnp.float32 else 1e-8
    picture = plots / "bilevel.png"
    draw(grid, shared, losses, decay, picture)
    done = error <= tol and float(losses[-1]) < float(jnp.min(shared))
    record = Record(
        "bilevel", title, "hypergradient", "tuned" if done else "not better than one decay", done, error, tol, STEPS,
        tuned.compile_seconds, tuned.run_seconds, pictures=[str(picture)],
        facts={"validation": float(losses[-1]), "one_decay": float(jnp.min(shared)),
               "stationarity": float(jnp.max(stationarity))},
    )  # fmt: skip
    for line in record.lines():
        say(line)
    one, many = float(jnp.min(shared)), float(losses[-1])
    say(f"validation loss {one:.4f} with the best single decay, {many:.4f} with one a pixel")
    return [record]


def draw(grid, shared, losses, decay, path: Path) -> None:
    """Draw the path of the shared decay, the tuning, and the decays over the image."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(11, 3))
    axes[0].plot(grid / np.log(10), shared, color="#D55E00")
    axes[0].axhline(float(np.min(shared)), color="#D55E00", linestyle="--", linewidth=1)
    axes[0].set(xlabel="log10 of one decay for all", ylabel="validation loss", title="one decay for all pixels")
    axes[1].plot(losses, color="#0072B2", label="one a pixel")
    axes[1].axhline(float(np.min(shared)), color="#D55E00", linestyle="--", label="best single one")
    axes[1].set(xlabel="hypergradient step", ylabel="validation loss", title="64 decays, tuned by gradients")
    axes[1].legend(frameon=False)
    image = axes[2].imshow(np.asarray(decay).reshape(8, 8) / np.log(10), cmap="viridis")
    axes[2].set(title="log10 of the decays found", xticks=[], yticks=[])
    fig.colorbar(image, ax=axes[2])
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)
