"""A heat simulation whose relaxation is learned from its own step counts, against fixed settings."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from ..core.bandits.learners import TsallisINF
from ..linear.learned.arms import Arms
from ..linear.learned.relaxation_theory import young_prior
from ..linear.learned.sequence import solve_sequence
from ..linear.systems.stencil import Stencil
from ..problems.linear import heat_start, heat_step
from .record import Peer, Record, timed

NX, STEPS = 50, 1000
TOL = 1e-8


def run(plots: Path, say) -> list[Record]:
    """Solve with a learned omega and with fixed ones, compare, draw."""
    dtype = jnp.result_type(float)
    tol = TOL if dtype == jnp.float64 else 1e-4
    title = f"{STEPS:,} heat steps on a {NX - 1} x {NX - 1} grid, diffusivity from 0 to 10, {dtype}"
    say(title)

    def step(t, u, args):
        problem = heat_step(t, u)
        return Stencil.laplacian(2, scale=problem.s, shift=jnp.ones_like(problem.s)), problem.rhs

    def simulate(u0, key, arms, learner):
        return solve_sequence(
            step, learner=learner, arms=arms, key=key, x0=u0, num_systems=STEPS, tol=tol, save=jnp.max
        )

    data = heat_start(NX), jax.random.key(7)
    best = None
    learned = timed(lambda u, k: simulate(u, k, Arms.sor(16), young_prior()), *data)
    out, peers = learned.output, []
    for omega in (1.0, 1.5, 1.75):
        fixed = timed(lambda u, k, w=omega: simulate(u, k, Arms.sor([w]), TsallisINF()), *data)
        note = f"{float(fixed.output.num_steps.mean()):.1f} sweeps a step"
        solved, error = bool(fixed.output.converged.all()), float(fixed.output.error.max())
        if best is None or fixed.output.num_steps.sum() < best[1].num_steps.sum():
            best = omega, fixed.output
        peers.append(Peer(f"omega = {omega}", fixed.run_seconds, solved, error, note))
    picture = plots / "linear.png"
    assert best is not None
    draw(out, Arms.sor(16).omega, *best, picture)
    record = Record(
        "linear",
        title,
        "solve_sequence",
        "converged" if bool(out.converged.all()) else out.message,
        bool(out.converged.all()),
        float(out.error.max()),
        float(out.tol),
        int(out.num_steps.sum()),
        learned.compile_seconds,
        learned.run_seconds,
        peers=peers,
        pictures=[str(picture)],
        facts={"mean_sweeps": float(out.num_steps.mean())},
    )
    for line in record.lines():
        say(line)
    return [record]


def draw(solution, omega, fixed: float, other, path: Path) -> None:
    """Draw the omega chosen and the sweeps taken in every step, beside the best fixed omega."""
    import matplotlib.pyplot as plt

    fig, (above, below) = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True)
    above.axhline(fixed, color="#D55E00", linewidth=1)
    above.plot(omega[solution.arms], ".", markersize=2, color="#0072B2")
    above.set(ylabel="omega", title="the setting of every step, learned from the sweeps of those before")
    below.plot(other.num_steps, color="#D55E00", linewidth=0.8, label=f"omega = {fixed}, the best of the fixed ones")
    below.plot(solution.num_steps, color="#0072B2", linewidth=0.8, label="learned")
    below.set(xlabel="time step", ylabel="sweeps")
    below.legend(frameon=False)
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)
