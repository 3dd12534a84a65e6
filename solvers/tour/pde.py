"""A multi-scale Poisson equation solved on a grid that resolves it, beside a second-order difference scheme."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from ..pde import Box, Dirichlet, PDEProblem, gp_solve
from ..problems.pde import PAPER
from .record import Peer, Record, timed

NODES = 20_001


def run(plots: Path, say) -> list[Record]:
    """Solve, compare with the known solution and with differences on many more nodes, draw."""
    instance = next(p for p in PAPER if p.name == "poisson mix")
    (lower, upper), (n,) = instance.bounds["x"], instance.grid
    x = jnp.linspace(lower, upper, 2001)
    truth = instance.exact(x)
    say(f"u'' = f with scales from 1 to 1/100, {n} nodes, {x.dtype}")

    def solve(left, right):
        faces = [Dirichlet("x-", left), Dirichlet("x+", right)]
        solution = gp_solve(PDEProblem(instance.residual, Box((lower, upper)), faces), grid=n)
        return solution, solution.mean(x)

    def differences(left, right):
        nodes = jnp.linspace(lower, upper, NODES)
        h = nodes[1] - nodes[0]
        f = -jnp.sin(nodes) - 40 * jnp.sin(20 * nodes) - 500 * jnp.cos(100 * nodes)
        slopes = jnp.cumsum(h * f[1:-1])
        rest = jnp.concatenate([jnp.zeros(1), h * jnp.cumsum(slopes)])
        inner = left + (right - left - rest[-1]) * jnp.arange(1, NODES) / (NODES - 1) + rest
        return jnp.interp(x, nodes, jnp.concatenate([left[None], inner]))

    ends = truth[0], truth[-1]
    ours, other = timed(solve, *ends), timed(differences, *ends)
    solution, mean = ours.output

    def distance(u):
        return float(jnp.linalg.norm(u - truth) / jnp.linalg.norm(truth))

    picture = plots / "pde.png"
    draw(x, truth, mean, other.output, picture)
    note = f"relative error {distance(other.output):.0e} on {NODES:,} nodes, ours {distance(mean):.0e} on {n}"
    peer = Peer("second-order differences", other.run_seconds, True, note=note)
    record = Record(
        "pde", f"Poisson, three scales, {n} nodes", "gp_solve", solution.message, bool(solution.converged),
        float(solution.error), float(solution.tol), int(solution.num_steps), ours.compile_seconds, ours.run_seconds,
        peers=[peer], pictures=[str(picture)], facts={"relative_l2": distance(mean)},
    )  # fmt: skip
    for line in record.lines():
        say(line)
    return [record]


def draw(x, truth, mean, other, path: Path) -> None:
    """Draw the solution and both errors."""
    import matplotlib.pyplot as plt

    fig, (above, below) = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True)
    above.plot(x, mean, color="#0072B2", linewidth=1)
    above.set_ylabel("u")
    for u, label, color in ((other, "differences", "#D55E00"), (mean, "gp_solve", "#0072B2")):
        below.semilogy(x, jnp.maximum(abs(u - truth), 1e-17), label=label, color=color, linewidth=0.8)
    below.set(xlabel="x", ylabel="error")
    below.legend(frameon=False)
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)
