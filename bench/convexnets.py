"""Training ReLU networks to a certificate: 20 random problems beside Clarabel, and digits end to end.

Both solve the same convex problem over the same patterns, ours by `train_relu`, Clarabel as a second-order cone program
to its tightest tolerances. `gap` is the certificate of ours; `above_clarabel` the relative distance of the objectives;
`network_objective` the nonconvex objective of the network that comes out, relative to it.
`pyscnn`: the augmented Lagrangian method of that package, in PyTorch, on the same gates. `robust`: against
perturbations of each feature, beside Clarabel; `network_objective` is then the worst corner of every box, enumerated.
"""

import contextlib
import importlib
import itertools
import sys
import time
from unittest import mock

import harness
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from solvers import ConvexReLU, train_relu
from solvers.problems.convexnets import noisy_ridges

with contextlib.suppress(ImportError):
    clarabel = importlib.import_module("clarabel")


def problem(seed: int, n: int, d: int, patterns: int, beta: float) -> ConvexReLU:
    """Return a regression with noise, a column of ones for the bias."""
    X, y = noisy_ridges(seed, n, d)
    return ConvexReLU.sampled(jnp.asarray(X), jnp.asarray(y), beta=beta, patterns=patterns, key=jax.random.key(seed))


def by_clarabel(p: ConvexReLU) -> tuple[float, float, int, str]:
    """Return objective, seconds, iterations and status of the cone program in (u, t, r)."""
    X, y, beta = np.asarray(p.X), np.asarray(p.y), float(p.beta)
    masks = np.asarray(p.active)[np.asarray(p.distinct)]
    signs, blocks = np.repeat([1.0, -1.0], len(masks)), np.concatenate([masks, masks])
    (n, d), b = X.shape, len(blocks)
    fit = sp.csc_matrix(np.concatenate([s * m[:, None] * X for s, m in zip(signs, blocks, strict=True)], axis=1))
    zero = sp.csc_matrix((n, b))
    rows = [sp.hstack([fit, zero, -sp.eye(n)])]
    cones, rhs = [clarabel.ZeroConeT(n)], [y]
    slacks = sp.block_diag([-(2 * m - 1)[:, None] * X for m in blocks])
    rows.append(sp.hstack([slacks, sp.csc_matrix((n * b, b + n))]))
    cones.append(clarabel.NonnegativeConeT(n * b))
    rhs.append(np.zeros(n * b))
    lengths = sp.lil_matrix((b * (d + 1), b * d + b + n))
    for i in range(b):
        lengths[i * (d + 1), b * d + i] = -1
        for j in range(d):
            lengths[i * (d + 1) + 1 + j, i * d + j] = -1
        cones.append(clarabel.SecondOrderConeT(d + 1))
    rows.append(lengths.tocsc())
    rhs.append(np.zeros(b * (d + 1)))
    quadratic = sp.block_diag([sp.csc_matrix((b * d + b, b * d + b)), sp.eye(n)]).tocsc()
    linear = np.concatenate([np.zeros(b * d), np.full(b, beta), np.zeros(n)])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-9
    system = sp.vstack(rows).tocsc()
    begin = time.perf_counter()
    answer = clarabel.DefaultSolver(quadratic, linear, system, np.concatenate(rhs), cones, settings).solve()
    return answer.obj_val, time.perf_counter() - begin, answer.iterations, str(answer.status)


def objective(net, p: ConvexReLU) -> float:
    """Return the nonconvex objective of the network in NumPy."""
    X, y = np.asarray(p.X), np.asarray(p.y)
    hidden, output = np.asarray(net.hidden), np.asarray(net.output)
    f = np.maximum(X @ hidden.T, 0) @ output
    return np.sum((f - y) ** 2) / 2 + float(p.beta) * (np.sum(hidden**2) + np.sum(output**2)) / 2


def race(count: int, n: int, d: int, patterns: int) -> list[dict]:
    """Solve `count` problems by both."""
    solve, rows = jax.jit(train_relu), []
    jax.block_until_ready(solve(problem(4, n, d, patterns, 0.1)))
    for seed in range(5, 5 + count):
        p = problem(seed, n, d, patterns, 10.0 ** (-2 + seed % 3))
        run = harness.clock(lambda p=p: solve(p), repeat=3)
        sol = run.output
        row = {
            "part": "random", "case": f"{seed}", "rows": n, "columns": d, "patterns": int(p.distinct.sum()),
            "beta": float(p.beta), "steps": int(sol.num_steps), "gap": float(sol.error),
            "converged": bool(sol.converged), "seconds": run.seconds,
            "network_objective": objective(sol.to_network(), p) / float(sol.objective) - 1,
        }  # fmt: skip
        if "clarabel" in globals():
            best, seconds, iterations, status = by_clarabel(p)
            row |= {"above_clarabel": float(sol.objective) / best - 1, "clarabel_seconds": seconds,
                    "clarabel_iterations": iterations, "clarabel_status": status,
                    "bound_below_clarabel": 1 - float(sol.lower_bound) / best}  # fmt: skip
        rows.append(row)
    return rows


def digits(quick: bool) -> list[dict]:
    """Train on scikit-learn's digits, 3 from 5, and judge on digits not trained on, beside scikit-learn's network."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPRegressor

    images, labels = load_digits(return_X_y=True)
    keep = np.isin(labels, (3, 5))
    x, y = images[keep] / 16, np.where(labels[keep] == 3, -1.0, 1.0)
    train, width = 200, 12
    _, _, axes = np.linalg.svd(x[:train] - x[:train].mean(0), full_matrices=False)
    parts = (x - x[:train].mean(0)) @ axes[:width].T
    X = np.column_stack([parts / parts[:train].std(0), np.ones(len(y))])
    patterns, beta, rows = 12 if quick else 32, 0.2, []
    solve = jax.jit(train_relu)
    p = ConvexReLU.sampled(jnp.asarray(X[:train]), jnp.asarray(y[:train]), beta=beta, patterns=patterns,
                           key=jax.random.key(5))  # fmt: skip
    run = harness.clock(lambda: solve(p), repeat=3, warm=True)
    sol = run.output
    net = sol.to_network()
    right = np.mean(np.sign(np.asarray(jax.vmap(net)(jnp.asarray(X[train:])))) == y[train:])
    common = {"part": "digits", "case": f"3 from 5, {train} to train on, {width} components"}
    rows.append({**common, "method": "train_relu", "objective": float(sol.objective), "gap": float(sol.error),
                 "steps": int(sol.num_steps), "held_out_accuracy": float(right), "seconds": run.seconds})  # fmt: skip
    begin = time.perf_counter()
    peers = [
        MLPRegressor(hidden_layer_sizes=(2 * patterns,), alpha=beta, solver="lbfgs", max_iter=5000, tol=1e-10,
                     random_state=s).fit(X[:train, :-1], y[:train]) for s in range(5, 6 if quick else 10)
    ]  # fmt: skip
    seconds = time.perf_counter() - begin
    accuracy = [float(np.mean(np.sign(m.predict(X[train:, :-1])) == y[train:])) for m in peers]
    rows.append({**common, "method": f"scikit-learn MLPRegressor by L-BFGS, best of {len(peers)} starts",
                 "held_out_accuracy": max(accuracy), "worst_accuracy": min(accuracy), "seconds": seconds})  # fmt: skip
    return rows


def by_pyscnn(p: ConvexReLU, tol: float) -> tuple[float, float]:
    """Return the network's objective and the seconds of pyscnn's augmented Lagrangian method with the same gates."""
    sys.modules.setdefault("cvxpy", mock.MagicMock())  # imported there for solvers that are not used here
    models, optimize, metrics, regularizers, solvers = (
        importlib.import_module(f"scnn.{name}") for name in ("models", "optimize", "metrics", "regularizers", "solvers")
    )
    X, y, beta = np.asarray(p.X), np.asarray(p.y), float(p.beta)
    model = models.ConvexReLU(np.asarray(p.gates)[np.asarray(p.distinct)].T)
    solver = solvers.AL(model, tol=tol, constraint_tol=tol, max_primal_iters=100_000, max_dual_iters=10_000)
    begin = time.perf_counter()
    found, _ = optimize.optimize_model(
        model, solver, metrics.Metrics(), X, y, regularizer=regularizers.NeuronGL1(beta / len(y)), unitize_data=False,
        dtype="float64",
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    hidden, output = (np.asarray(w) for w in found.parameters)
    size = np.linalg.norm(hidden, axis=1) * np.abs(output.ravel())  # of each neuron when its layers are balanced
    f = np.maximum(X @ hidden.T, 0) @ output.ravel()
    return float(np.sum((f - y) ** 2) / 2 + beta * np.sum(size)), seconds


def pyscnn(options) -> list[dict]:
    """Train to a gap of 1e-4, beside pyscnn at two tolerances; above_bound is the distance from our lower bound."""
    rows, solve = [], jax.jit(lambda p: train_relu(p, tol=1e-4))
    for seed, (n, d, patterns) in ((5, (40, 5, 20)), (6, (80, 6, 30)))[: 1 if options.quick else 2]:
        p = problem(seed, n, d, patterns, 0.1)
        run = harness.clock(lambda p=p: solve(p), repeat=3, warm=True)
        best, low = float(run.output.objective), float(run.output.lower_bound)
        case = {"part": "pyscnn", "case": f"{seed}: n={n}, d={d}, {int(p.distinct.sum())} patterns"}
        rows.append({**case, "method": "train_relu", "above_bound": best / low - 1, "seconds": run.seconds})
        for tol in (1e-6, 1e-8):
            row = {**case, "method": f"pyscnn AL, tol {tol:.0e}"}
            try:
                value, seconds = by_pyscnn(p, tol)
                rows.append(
                    {**row, "above_bound": value / low - 1, "seconds": seconds, "over_ours": seconds / run.seconds}
                )
            except ImportError as missing:
                rows.append({**row, "failure": str(missing)})
    return rows


def large(options) -> list[dict]:
    """Factorise each step's system or solve it with a sketch, to the end, on 300 and on 3,000 examples."""
    rows = []
    for n, steps in ((300, 60),) if options.quick else ((300, 60), (3000, 100)):
        p = problem(5, n, 8, 20, 1.0)
        for name, sketch in (("factorised", None), ("sketch of rank 100", 100)):
            solve = jax.jit(lambda p, steps, s=sketch: train_relu(p, sketch=s, tol=1e-6, max_steps=steps))
            jax.block_until_ready(solve(p, 1))
            run = harness.clock(lambda solve=solve, p=p, steps=steps: solve(p, steps), repeat=1)
            sol = run.output
            rows.append({
                "part": "large", "case": f"n={n}, d=8, {int(p.distinct.sum())} patterns", "method": name,
                "objective": float(sol.objective), "gap": float(sol.error), "steps": int(sol.num_steps),
                "converged": bool(sol.converged), "seconds_a_step": run.seconds / int(sol.num_steps),
                "seconds": run.seconds,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def robust_program(p: ConvexReLU):
    """Return quadratic, linear, rows, right-hand sides and cones of the robust problem in (u, a, t, h, r)."""
    X, y, beta, e = (np.asarray(v) for v in (p.X, p.y, p.beta, p.radius))
    masks = np.asarray(p.active)[np.asarray(p.distinct)]
    signs, blocks = np.repeat([1.0, -1.0], len(masks)), np.concatenate([masks, masks])
    (n, d), b = X.shape, len(blocks)
    fit = sp.csc_matrix(np.concatenate([s * m[:, None] * X for s, m in zip(signs, blocks, strict=True)], axis=1))
    turn = sp.kron(sp.csc_matrix(blocks.T * signs), sp.eye(d))
    none = lambda rows, columns: sp.csc_matrix((rows, columns))  # noqa: E731
    row = lambda u=None, a=None, h=None, r=None, k=1: sp.hstack([  # noqa: E731
        none(k, b * d) if u is None else u, none(k, b * d) if a is None else a, none(k, b),
        none(k, n * d) if h is None else h, none(k, n) if r is None else r])  # fmt: skip
    sides = sp.block_diag([(2 * m - 1)[:, None] * X for m in blocks])
    wide, reach = sp.kron(sp.eye(b), np.tile(e, (n, 1))), sp.kron(sp.eye(n), e[None, :])
    I, H, R = sp.eye(b * d), sp.eye(n * d), sp.eye(n)  # noqa: E741
    inside = [row(sides, -wide, k=n * b), row(-I, I, k=b * d), row(I, I, k=b * d), row(-turn, h=H, k=n * d),
              row(turn, h=H, k=n * d)]  # fmt: skip
    zeros = np.zeros(n * b + 2 * b * d + 2 * n * d)
    if p.loss == "squared":
        inside += [row(-fit, h=-reach, r=R, k=n), row(fit, h=-reach, r=R, k=n)]
        constants = np.concatenate([zeros, y, -y])
    else:
        inside += [row(r=R, k=n), row(sp.diags(y) @ fit, h=-reach, r=R, k=n)]
        constants = np.concatenate([zeros, np.zeros(n), -np.ones(n)])
    size = 2 * b * d + b + n * d + n
    cones, lengths = [clarabel.NonnegativeConeT(len(constants))], sp.lil_matrix((b * (d + 1), size))
    for i in range(b):
        lengths[i * (d + 1), 2 * b * d + i] = -1
        for j in range(d):
            lengths[i * (d + 1) + 1 + j, i * d + j] = -1
        cones.append(clarabel.SecondOrderConeT(d + 1))
    last = np.concatenate([np.zeros(size - n), np.ones(n)])
    squared = p.loss == "squared"
    linear = np.concatenate(
        [np.zeros(2 * b * d), np.full(b, beta), np.zeros(n * d), np.zeros(n) if squared else np.ones(n)]
    )
    rows = sp.vstack([-sp.vstack(inside), lengths]).tocsc()
    return sp.diags(last * squared).tocsc(), linear, rows, np.concatenate([constants, np.zeros(b * (d + 1))]), cones


def worst_corner(net, p: ConvexReLU) -> float:
    """Return the nonconvex objective with the worst corner of each example's box, in NumPy."""
    X, y, radius = np.asarray(p.X), np.asarray(p.y), np.asarray(p.radius)
    hidden, output = np.asarray(net.hidden), np.asarray(net.output)
    losses = []
    for corner in itertools.product((-1.0, 1.0), repeat=X.shape[1]):
        f = np.maximum((X + radius * np.array(corner)) @ hidden.T, 0) @ output
        losses.append((f - y) ** 2 / 2 if p.loss == "squared" else np.maximum(1 - y * f, 0))
    return np.sum(np.max(losses, axis=0)) + float(p.beta) * (np.sum(hidden**2) + np.sum(output**2)) / 2


def robust(options) -> list[dict]:
    """Solve ten problems of each loss against perturbations, beside Clarabel."""
    solve, rows, (n, d) = jax.jit(train_relu), [], (30, 4)
    for loss, seed in itertools.product(("squared", "hinge"), range(5, 7 if options.quick else 15)):
        X, y = noisy_ridges(seed, n, d)
        y = np.sign(y) if loss == "hinge" else y
        radius = np.append(np.full(d - 1, 0.01 * (1 + seed % 3)), 0.0)
        p = ConvexReLU.sampled(jnp.asarray(X), jnp.asarray(y), beta=10.0 ** (-2 + seed % 3), patterns=20, loss=loss,
                               key=jax.random.key(seed)).robust(radius)  # fmt: skip
        run = harness.clock(lambda p=p: solve(p), repeat=3, warm=True)
        sol = run.output
        row = {
            "part": "robust", "case": f"{loss} {seed}", "rows": n, "columns": d, "patterns": int(p.distinct.sum()),
            "radius": float(radius[0]), "beta": float(p.beta), "steps": int(sol.num_steps), "gap": float(sol.error),
            "converged": bool(sol.converged), "seconds": run.seconds,
            "network_objective": worst_corner(sol.to_network(), p) / float(sol.objective) - 1,
        }  # fmt: skip
        if "clarabel" in globals():
            settings = clarabel.DefaultSettings()
            settings.verbose = False
            settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-9
            program = robust_program(p)
            begin = time.perf_counter()
            answer = clarabel.DefaultSolver(*program, settings).solve()
            row |= {"clarabel_seconds": time.perf_counter() - begin, "clarabel_iterations": answer.iterations,
                    "clarabel_status": str(answer.status), "above_clarabel": float(sol.objective) / answer.obj_val - 1,
                    "bound_below_clarabel": 1 - float(sol.lower_bound) / answer.obj_val}  # fmt: skip
        rows.append(row)
    return rows


def main() -> None:
    """Run what was chosen and save."""
    options = harness.arguments(__doc__)
    jax.config.update("jax_enable_x64", True)
    parts = {
        "random": lambda options: race(4 if options.quick else 20, 40, 5, 20),
        "digits": lambda options: digits(options.quick),
        "pyscnn": pyscnn,
        "large": large,
        "robust": robust,
    }
    record = harness.machine("clarabel", "scikit-learn", "pyscnn")
    harness.run_parts(options, "convexnets", parts, key=("part", "case", "method"), record=record)


if __name__ == "__main__":
    main()
