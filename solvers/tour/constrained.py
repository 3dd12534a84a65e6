"""Handwritten digits told odd from even by weights on a sphere, with equations alone and with bounds as well."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from sklearn.datasets import load_digits

from ..constrained.interior import InteriorSolution, interior_point
from ..constrained.newton import NewtonSolution, sketched_newton
from ..plot import convergence
from ..problems.constrained import NLP, logistic
from .record import Peer, Record, timed


def digits() -> NLP:
    """Return the problem of the paper on the digits of scikit-learn, features scaled to [-1, 1]."""
    data, target = load_digits(return_X_y=True)
    return logistic(data / 8.0 - 1.0, 2.0 * (target % 2) - 1.0)


def run(plots: Path, say) -> list[Record]:
    """Solve, compare, draw."""
    problem = digits()
    title = f"logistic regression of {problem.args[0].shape[0]:,} digits, 64 weights on a sphere and 10 hyperplanes"
    say(title)

    def solve(x0, args) -> NewtonSolution:
        return sketched_newton(problem.objective, x0, equality=problem.equality, args=args, history=True)

    ours = timed(solve, problem.x0, problem.args)
    sol: NewtonSolution = ours.output
    facts = {"loss": float(sol.objective), "violation": float(sol.constraint_violation)}
    say(f"loss {facts['loss']:.6f}, constraints met to {facts['violation']:.0e}")
    picture = plots / "constrained.png"
    record = Record.of(
        "constrained", title, "sketched_newton", ours, peers=[_scipy(problem)], pictures=[str(picture)], facts=facts
    )
    for line in record.lines():
        say(line)
    second, within = bounded(problem, say)
    draw(sol, within, picture)
    say(f"picture: {picture}")
    return [record, second]


def bounded(problem: NLP, say) -> tuple[Record, np.ndarray]:
    """Solve for weights in a ball that must not exceed a tenth: inequalities and bounds in the place of equations."""
    title = "the same digits, weights in a ball and none above a tenth in size"

    def solve(x0, args) -> InteriorSolution:
        return interior_point(
            problem.objective, x0, inequality=lambda x, _: jnp.sum(x**2) - 0.25, bounds=(-0.1, 0.1), args=args
        )

    ours = timed(solve, jnp.zeros_like(problem.x0), problem.args)
    sol: InteriorSolution = ours.output
    at_bound = int(np.sum(np.abs(np.asarray(sol.value)) > 0.1 - 1e-6))
    facts = {"loss": float(sol.objective), "weights at a bound": at_bound}
    say(f"{title}: loss {facts['loss']:.6f}, {at_bound} of {sol.value.size} weights at a bound")
    record = Record.of("constrained", title, "interior_point", ours, facts=facts)
    for line in record.lines():
        say(line)
    return record, np.asarray(sol.value)


def draw(sol: NewtonSolution, within: np.ndarray, path: Path) -> None:
    """Draw the error after each step, and the weights of both problems by pixel."""
    import matplotlib.pyplot as plt

    figure, (left, *right) = plt.subplots(1, 3, figsize=(11, 3.2), width_ratios=(1.3, 1, 1), layout="constrained")
    convergence({"sketched_newton": np.asarray(sol.history)}, tol=float(sol.tol), axes=left)
    shown = {"on a sphere and 10 hyperplanes": np.asarray(sol.value), "in a ball, none above 0.1": within}
    for axes, (title, weights) in zip(right, shown.items(), strict=True):
        most = np.abs(weights).max()
        image = axes.imshow(weights.reshape(8, 8), cmap="RdBu", vmin=-most, vmax=most)
        axes.set(title=title, xticks=[], yticks=[])
        figure.colorbar(image, ax=axes, label="weight of the pixel: blue speaks for odd")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _scipy(problem: NLP) -> Peer:
    """Run SciPy's trust-constr with exact derivatives."""
    objective = jax.jit(jax.value_and_grad(lambda x: problem.objective(x, problem.args)))
    hessian = jax.jit(jax.hessian(lambda x: problem.objective(x, problem.args)))
    values = jax.jit(lambda x: problem.equality(x, problem.args))
    jacobian = jax.jit(jax.jacfwd(lambda x: problem.equality(x, problem.args)))
    x0 = np.asarray(problem.x0)
    for function in (objective, hessian, values, jacobian):
        jax.block_until_ready(function(x0))
    curvature = 2 * np.eye(x0.size)
    derivatives: dict[str, Any] = {"jac": jacobian, "hess": lambda x, v: v[-1] * curvature}
    constraint = scipy.optimize.NonlinearConstraint(values, 0, 0, **derivatives)
    start = time.perf_counter()
    found = scipy.optimize.minimize(
        lambda x: tuple(map(np.asarray, objective(x))), x0, jac=True, hess=lambda x: np.asarray(hessian(x)),
        method="trust-constr", constraints=constraint, options={"gtol": 1e-9, "xtol": 1e-14},
    )  # fmt: skip
    seconds = time.perf_counter() - start
    gradient, G = np.asarray(objective(found.x)[1]), np.asarray(jacobian(found.x))
    multipliers = np.linalg.lstsq(G.T, -gradient, rcond=None)[0]
    error = float(np.hypot(np.linalg.norm(gradient + multipliers @ G), np.linalg.norm(values(found.x))))
    return Peer("SciPy trust-constr", seconds, error <= 1e-7, error, "exact derivatives; solved means error <= 1e-7")
