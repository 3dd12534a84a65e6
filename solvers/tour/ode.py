"""An oscillator solved by diffrax, and what its solver knew of error and stiffness on the way."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from .record import Record, timed

PULL, END, TOLERANCE = 5.0, 12.0, 1e-7


def run(plots: Path, say) -> list[Record]:
    """Solve with and without keeping the estimates, compare with the Jacobian's norm, draw."""
    import diffrax

    from ..ode import TrackHeuristics, error_penalty, stiffness_penalty

    title = "van der Pol's oscillator: the stiffness that its solver saw, against the Jacobian's norm"
    say(title)
    field = lambda t, y, pull: jnp.stack([y[1], pull * (1 - y[0] ** 2) * y[1] - y[0]])  # noqa: E731
    times = jnp.linspace(0.0, END, 400)

    def solve(pull, solver, tolerance):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field), solver, 0.0, END, 0.01, jnp.asarray([2.0, 0.0]), pull, max_steps=4096,
            saveat=diffrax.SaveAt(ts=times, solver_state=True),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        )  # fmt: skip

    def kept(pull):
        sol = solve(pull, TrackHeuristics(diffrax.Tsit5(), rtol=TOLERANCE, atol=TOLERANCE), TOLERANCE)
        return sol.ys, sol.stats["num_steps"], error_penalty(sol), stiffness_penalty(sol)

    own = timed(kept, jnp.asarray(PULL))
    plain = timed(lambda pull: (lambda s: (s.ys, s.stats["num_steps"]))(solve(pull, diffrax.Tsit5(), TOLERANCE)),
                  jnp.asarray(PULL))  # fmt: skip
    y, steps, penalty, stiff = own.output
    jacobians = jax.vmap(lambda y: jax.jacfwd(lambda y: field(0.0, y, PULL))(y))(y)
    norms = jnp.linalg.svd(jacobians, compute_uv=False)[:, 0]
    same = bool(jnp.all(y == plain.output[0])) and int(steps) == int(plain.output[1])
    # A quotient of differences in one direction: it cannot exceed the norm, the grid of times apart.
    error, tol = float(jnp.maximum(stiff / jnp.max(norms) - 1, 0)), 0.05
    picture = plots / "ode.png"
    draw(np.asarray(times), np.asarray(y), np.asarray(norms), float(stiff), picture)
    done = same and error <= tol
    record = Record(
        "ode", title, "TrackHeuristics", "same steps" if done else "off", done, error,
        tol, int(steps), own.compile_seconds, own.run_seconds, pictures=[str(picture)],
        facts={"stiffness": float(stiff), "largest_norm": float(jnp.max(norms)), "error_penalty": float(penalty),
               "same_steps": same},
    )  # fmt: skip
    for line in record.lines():
        say(line)
    return [record]


def draw(times, y, norms, stiff, path: Path) -> None:
    """Draw the oscillation and the Jacobian's norm along it."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    axes[0].plot(times, y[:, 0], color="#0072B2")
    axes[0].set(xlabel="t", ylabel="y", title="the oscillation")
    axes[1].semilogy(times, norms, color="#0072B2", label="norm of the Jacobian")
    axes[1].axhline(stiff, color="#D55E00", linestyle="--", label="largest stiffness seen by the solver")
    axes[1].set(xlabel="t", ylabel="1 / time", title="what makes it stiff", ylim=(3, 400))
    axes[1].legend(frameon=False, fontsize=8, loc="upper left")
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)
