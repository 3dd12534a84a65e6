"""HiPPO's memory made diagonal twice, by dropping a rank and by a small perturbation, and how far each ends up."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..statespace import DiagonalSSM, LinearSystem, hinf_distance, hippo, ptd
from ..statespace.initialization import normal_legs
from .record import Record

STATES = 32
STEP = 1 / 512


def run(plots: Path, say) -> list[Record]:
    """Diagonalise, measure the distance, draw the memories."""
    title = f"HiPPO-LegS with {STATES} states, made diagonal: the worst error over all frequencies"
    say(title)
    A, B = hippo("legs", STATES)
    exact = LinearSystem(A, B, np.eye(STATES)[4])
    begin = time.perf_counter()
    poles, gains, V = ptd(STATES, method="optimal")
    made = time.perf_counter() - begin
    normal, U = normal_legs(STATES)
    systems = {
        "S4D": LinearSystem(normal, U.conj().T @ B / 2, U[4]),
        "perturbed": LinearSystem(poles, gains, V[4]),
    }
    begin = time.perf_counter()
    found = {name: hinf_distance(exact, system) for name, system in systems.items()}
    searched = time.perf_counter() - begin
    for name, distance in found.items():
        say(f"{name:<10} between {distance.lower:.2e} and {distance.upper:.2e}")
    picture = plots / "statespace.png"
    draw(systems, picture)
    ours = found["perturbed"]
    record = Record(
        "statespace", title, "hinf_distance", "interval found" if ours.converged else "interval too wide",
        all(d.converged for d in found.values()), ours.error, 1e-2, ours.evaluations, made, searched,
        pictures=[str(picture)], facts={name: d.upper for name, d in found.items()},
    )  # fmt: skip
    for line in record.lines():
        say(line)
    return [record]


def draw(systems: dict[str, LinearSystem], path: Path) -> None:
    """Draw the memory of the fifth coefficient: an impulse response, which should be a polynomial in ``e^-t``."""
    import matplotlib.pyplot as plt

    steps = 1536
    t = STEP * np.arange(steps)
    decay = np.exp(-t)
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for (name, system), colour, width in zip(systems.items(), ("#D55E00", "#0072B2"), (0.8, 3.0), strict=True):
        layer = DiagonalSSM(jnp.asarray(system.A), jnp.asarray(system.B * system.C), step=STEP, pairs=False)
        axes.plot(t, jax.jit(lambda m: m.kernel(steps))(layer)[0] / STEP, color=colour, linewidth=width, label=name)
    legendre = np.polynomial.legendre.legval(2 * decay - 1, np.eye(5)[4])
    axes.plot(t, 3 * decay * legendre, color="black", linewidth=1, linestyle=":", label="exact")
    axes.set(xlabel="time since the impulse", ylabel="fifth coefficient", title="what 32 states remember of an impulse")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
