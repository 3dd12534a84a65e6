"""A neural differential equation that learns a spiral, and to be cheap to solve while it does."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .record import Record, timed

WIDTH, POINTS, END, TOLERANCE = 32, 30, 1.5, 1e-6


class Field(eqx.Module):
    """A network with one hidden layer, fed with the cubes of the state."""

    network: eqx.nn.MLP

    def __init__(self, key):
        self.network = eqx.nn.MLP(2, 2, WIDTH, 1, jnp.tanh, key=key)

    def __call__(self, t, y, args):
        """Return the velocity."""
        return self.network(y**3)


def solve(field, times, solver=None):
    """Return diffrax's solution from the spiral's start, steps by Tsit5 to a tolerance."""
    import diffrax

    from ..ode import TrackHeuristics

    solver = TrackHeuristics(diffrax.Tsit5(), rtol=TOLERANCE, atol=TOLERANCE) if solver is None else solver
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field), solver, 0.0, END, 0.01, jnp.asarray([2.0, 0.0]), max_steps=256,
        saveat=diffrax.SaveAt(ts=times, solver_state=True),
        stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
    )  # fmt: skip


def spiral(t, y, args):
    """Return the velocity that is to be learned."""
    return jnp.asarray([[-0.1, 2.0], [-2.0, -0.1]]) @ y**3


def train(key, penalty, steps):
    """Return the field trained with that weight of the error penalty, its losses, and evaluations on the way."""
    from ..ode import error_penalty

    times = jnp.linspace(0.0, END, POINTS)
    target = solve(spiral, times).ys
    field = Field(key)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.02, steps))

    def loss(field):
        sol = solve(field, times)
        miss = jnp.mean((sol.ys - target) ** 2)
        return miss + penalty * error_penalty(sol), (miss, 6 * sol.stats["num_steps"] + 2)

    def step(carry, _):
        field, state = carry
        slope, seen = eqx.filter_grad(loss, has_aux=True)(field)
        updates, state = optimiser.update(slope, state)
        return (eqx.apply_updates(field, updates), state), seen

    arrays, static = eqx.partition(field, eqx.is_array)
    state = optimiser.init(arrays)

    def on_arrays(carry, x):
        field, state = carry
        (field, state), seen = step((eqx.combine(field, static), state), x)
        return (eqx.filter(field, eqx.is_array), state), seen

    (arrays, _), (losses, evaluations) = jax.lax.scan(on_arrays, (arrays, state), None, length=steps)
    return arrays, losses, evaluations


def run(plots: Path, say) -> list[Record]:
    """Train with and without the penalty, and draw."""
    title = "a neural differential equation learns a spiral, and to be cheap to solve"
    say(title)
    key, steps = jax.random.key(7), 300
    both = timed(lambda penalties: jax.vmap(lambda p: train(key, p, steps))(penalties), jnp.asarray([0.0, 0.3]))
    _, losses, evaluations = both.output
    ends, costs = np.asarray(losses)[:, -20:].mean(axis=1), np.asarray(evaluations)[:, -20:].mean(axis=1)
    picture = plots / "ode.png"
    draw(np.asarray(losses), np.asarray(evaluations), picture)
    saved = 1 - costs[1] / costs[0]
    record = Record(
        "ode", title, "error_penalty", "cheaper" if saved > 0 else "not cheaper", bool(saved > 0), float(ends[1]), 1e-2,
        steps, both.compile_seconds, both.run_seconds, pictures=[str(picture)],
        facts={"evaluations": float(costs[1]), "evaluations_without": float(costs[0]), "loss_without": float(ends[0])},
    )  # fmt: skip
    for line in record.lines():
        say(line)
    say(f"{costs[0]:.0f} evaluations a solve without the penalty, {costs[1]:.0f} with it")
    return [record]


def draw(losses, evaluations, path: Path) -> None:
    """Draw losses and evaluations over the training."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for k, (name, colour) in enumerate((("loss alone", "#D55E00"), ("with the error penalty", "#0072B2"))):
        axes[0].semilogy(losses[k], color=colour, label=name)
        axes[1].plot(evaluations[k], color=colour, label=name)
    axes[0].set(xlabel="training step", ylabel="mean squared distance")
    axes[1].set(xlabel="training step", ylabel="evaluations a solve")
    axes[1].legend(frameon=False)
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)
