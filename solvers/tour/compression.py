"""Bits for the layers of a published ResNet18 under a budget of memory, beside SciPy's integer program."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..compression import bit_allocation, pareto_front
from ..problems.compression import Allocation, resnet18
from .record import Peer, Record, clocked, installed


def run(plots: Path, say) -> list[Record]:
    """Choose, prove, compare, draw."""
    data = resnet18()
    title = f"4 or 8 bits for {len(data.tied)} layers of a ResNet18 in {data.budget:.2f} MB, three pairs of layers tied"
    say(title)
    best, seconds = clocked(lambda: bit_allocation(data.sensitivity, data.size, data.budget, tied=data.tied))
    front = pareto_front(data.sensitivity, data.size, tied=data.tied)
    peers = [integer_program(data, float(best.objective))] if installed("scipy") else []
    picture = plots / "compression.png"
    draw(data, best, front, picture)
    done = bool(best.converged)
    record = Record(
        "compression", title, "bit_allocation", "proved optimal" if done else best.message, done, float(best.error),
        0.0, int(best.num_steps), 0.0, seconds, peers=peers, pictures=[str(picture)],
        facts={"megabytes": float(best.cost), "sensitivity": float(best.objective), "front": len(front.cost)},
    )  # fmt: skip
    for line in record.lines():
        say(line)
    return [record]


def integer_program(data: Allocation, ours: float) -> Peer:
    """Solve the same by SciPy's HiGHS."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, options = data.sensitivity.shape
    tie = np.array([np.eye(layers)[i] - np.eye(layers)[j] for i, j in enumerate(data.tied) if i != j])
    rules = [
        LinearConstraint(np.kron(np.eye(layers), np.ones(options)), 1, 1),
        LinearConstraint(data.size.reshape(1, -1), -np.inf, data.budget),
        LinearConstraint(np.kron(tie, [1, 0]), 0, 0),
    ]
    answer, seconds = clocked(
        lambda: milp(data.sensitivity.ravel(), constraints=rules, integrality=np.ones(layers * options),
                     bounds=Bounds(0, 1), options={"mip_rel_gap": 0})
    )  # fmt: skip
    gap = abs(answer.fun - ours) if answer.x is not None else np.inf
    return Peer("scipy milp", seconds, gap <= 1e-6 * abs(ours), gap, "distance of its objective from ours")


def draw(data: Allocation, best, front, path: Path) -> None:
    """Draw the front with the choice on it, and the bits of every layer."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot(front.cost, front.sensitivity, ".", ms=5, color="#0072B2", label=f"{len(front.cost)} best choices")
    left.axvline(data.budget, color="#555555", lw=1, ls="--", label="budget")
    left.plot(best.cost, best.objective, "*", ms=12, color="#D55E00", label="chosen")
    left.set(xlabel="size of the weights (MB)", ylabel="expected rise of the loss", yscale="log")
    left.set_title("what each size costs at the least")
    left.legend(frameon=False)
    bits = np.where(best.value == 0, 4, 8)
    right.bar(np.arange(len(bits)), bits, color=np.where(bits == 4, "#D55E00", "#0072B2"))
    right.set_title("the choice within the budget")
    right.set(xlabel="layer", ylabel="bits a weight", yticks=[0, 4, 8], xticks=range(0, len(bits), 3))
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
