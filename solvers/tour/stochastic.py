"""A classifier learned by sensors that talk only to neighbours, with the rates of their talk designed."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..problems.stochastic import barbell
from ..stochastic import dadao, gossip_rates
from .record import Peer, Record, timed

HALF, RIDGE = 6, 0.05


def node_data(n: int, dtype):
    """Return digits, fives against the rest, in parts of equal size that hold neighbouring classes."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.argsort(labels, kind="stable")[: len(labels) // n * n]
    pixels = (pixels[order] - pixels.mean(0)) / 16
    signs = np.where(labels[order] == 5, 1.0, -1.0)
    return jnp.asarray(pixels.reshape(n, -1, 64), dtype), jnp.asarray(signs.reshape(n, -1), dtype)


def run(plots: Path, say) -> list[Record]:
    """Learn, with equal rates and with the best ones, and draw."""
    n, edges = 2 * HALF, barbell(HALF)
    X, y = node_data(n, jnp.result_type(float))
    title = f"{n} sensors in two rooms joined by one link learn a digit classifier, each from its own digits"
    say(title)

    def gradient(w, node):
        X, y = node
        return -X.T @ (y * jax.nn.sigmoid(-y * (X @ w))) / X.shape[0] + RIDGE * w

    smoothness = RIDGE + float(max(np.linalg.norm(part, 2) ** 2 / len(part) for part in np.asarray(X))) / 4
    rates = gossip_rates(edges, n)

    def solve(X, y, rates):
        return dadao(
            gradient, jnp.zeros(64, X.dtype), (X, y), edges, mu=RIDGE, smoothness=smoothness, key=jax.random.key(7),
            rates=rates, history=400, tol=1e-4,
        )  # fmt: skip

    best = timed(solve, X, y, rates.value)
    equal = timed(solve, X, y, None)
    ours, other = best.output, equal.output
    picture = plots / "stochastic.png"
    draw(edges, np.asarray(rates.value), ((ours, "best rates"), (other, "equal rates")), picture)
    peer = Peer("dadao, equal rates", equal.run_seconds, bool(other.converged), float(other.error),
                f"{int(other.num_messages):,} messages; best rates {int(ours.num_messages):,}")  # fmt: skip
    facts = {"messages": int(ours.num_messages), "messages_equal": int(other.num_messages), "rates": float(rates.total)}
    record = Record.of("stochastic", title, "dadao", best, peers=[peer], pictures=[str(picture)], facts=facts)
    for line in record.lines():
        say(line)
    return [record]


def draw(edges, rates, runs, path: Path) -> None:
    """Draw the graph with its rates, and the error against messages."""
    import matplotlib.pyplot as plt

    fig, (graph, axes) = plt.subplots(1, 2, figsize=(10, 3.6))
    half = int(edges.max() + 1) // 2
    angle = 2 * np.pi * np.arange(half) / half
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    # The joined nodes face each other: the last of the first room, the first of the second.
    left = (ring @ rotation(-angle[-1]).T) + [-1.7, 0]
    right = (ring @ rotation(np.pi).T) + [1.7, 0]
    at = np.concatenate([left, right])
    for (i, j), rate in zip(edges, rates, strict=True):
        graph.plot(*at[[i, j]].T, color="#0072B2", linewidth=1 + 6 * rate / rates.max(), alpha=0.6, zorder=1)
    graph.scatter(*at.T, color="#333333", zorder=2)
    graph.set(title="rate of every link as its width", xticks=[], yticks=[], aspect="equal")
    for (sol, name), colour in zip(runs, ("#0072B2", "#D55E00"), strict=True):
        errors = np.asarray(sol.history)[: int(sol.num_steps) + 1]
        messages = np.linspace(0, int(sol.num_messages), len(errors))
        axes.semilogy(messages, errors, label=name, color=colour)
    axes.set(xlabel="messages", ylabel="bound on the relative distance")
    axes.legend(frameon=False)
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)


def rotation(angle: float) -> np.ndarray:
    """Return the matrix of a rotation in the plane."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
