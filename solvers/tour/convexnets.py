"""The convex-network part: two digits told apart by a network with a certificate, beside scikit-learn's own."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..convexnets.problem import ConvexReLU
from ..convexnets.training import train_relu
from .record import Peer, Record, timed

PAIR, TRAIN, PIXELS, PATTERNS, BETA = (3, 5), 160, 12, 24, 0.2


def digits():
    """Return standardised leading components of two digits with a column of ones, and targets of -1 and 1."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    keep = np.isin(labels, PAIR)
    images, y = images[keep] / 16, np.where(labels[keep] == PAIR[0], -1.0, 1.0)
    _, _, axes = np.linalg.svd(images[:TRAIN] - images[:TRAIN].mean(0), full_matrices=False)
    parts = (images - images[:TRAIN].mean(0)) @ axes[:PIXELS].T
    return np.column_stack([parts / parts[:TRAIN].std(0), np.ones(len(y))]), y, axes[:PIXELS]


def run(plots: Path, say) -> list[Record]:
    """Train, certify, compare, draw."""
    dtype = jnp.result_type(float)
    X, y, axes = digits()
    title = f"a ReLU network that tells {PAIR[0]} from {PAIR[1]}, {TRAIN} digits, {2 * PATTERNS} neurons, {dtype}"
    say(title)

    def train(X, y):
        problem = ConvexReLU.sampled(X, y, beta=BETA, patterns=PATTERNS, key=jax.random.key(5))
        return train_relu(problem)

    solved = timed(train, jnp.asarray(X[:TRAIN], dtype), jnp.asarray(y[:TRAIN], dtype))
    sol = solved.output
    network = sol.to_network()
    accuracy = float(np.mean(np.sign(np.asarray(jax.vmap(network)(jnp.asarray(X[TRAIN:], dtype)))) == y[TRAIN:]))
    picture = plots / "convexnets.png"
    draw(np.asarray(network.hidden), np.asarray(network.output), axes, picture)
    record = Record.of(
        "convexnets", title, "train_relu", solved, peers=[descent(X, y, float(sol.objective))], pictures=[str(picture)],
        facts={"objective": float(sol.objective), "lower_bound": float(sol.lower_bound), "accuracy": accuracy},
    )  # fmt: skip
    for line in record.lines():
        say(line)
    bounds = f"{float(sol.lower_bound):.6f} and {float(sol.objective):.6f}"
    say(f"objective over the {PATTERNS} sampled patterns between {bounds}: that is proved for these patterns only")
    say(f"{accuracy:.1%} of new digits right")
    return [record]


def descent(X, y, best: float) -> Peer:
    """Return where scikit-learn's network of as many neurons ends by L-BFGS: with free patterns, and no proof."""
    import time
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    begin = time.perf_counter()
    # Its objective is the mean of ours, with the same decay on weights; biases are in X.
    peer = MLPRegressor(
        hidden_layer_sizes=(2 * PATTERNS,), solver="lbfgs", alpha=BETA, max_iter=500, random_state=3, tol=1e-9
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # that it has not converged is in its objective
        peer.fit(X[:TRAIN], y[:TRAIN])
    seconds = time.perf_counter() - begin
    decay = sum(np.sum(w**2) for w in peer.coefs_) / 2
    objective = np.sum((peer.predict(X[:TRAIN]) - y[:TRAIN]) ** 2) / 2 + BETA * decay
    note = f"its objective is {objective / best:.2f} times ours: free patterns, intercepts not penalised, no proof"
    return Peer("scikit-learn L-BFGS", seconds, True, None, note)


def draw(hidden, output, axes, path: Path) -> None:
    """Draw what the strongest neurons look for, in pixels."""
    import matplotlib.pyplot as plt

    order = np.argsort(-np.abs(output))[:8]
    fig, panels = plt.subplots(1, 8, figsize=(12, 1.9))
    for panel, j in zip(panels, order, strict=True):
        image = (hidden[j, :-1] @ axes).reshape(8, 8)
        panel.imshow(image, cmap="RdBu", vmin=-np.abs(image).max(), vmax=np.abs(image).max())
        panel.set(title=f"{np.sign(output[j]) * output[j] ** 2:+.2f}", xticks=[], yticks=[])
    fig.suptitle("the strongest neurons by pixel (blue: positive), and their weight in the answer", y=1.05)
    fig.tight_layout()
    fig.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(fig)
