"""Completion judged by entries that were hidden: real tables beside scikit-learn's imputers, skewed sampling, counts.

`held_out`: half of the entries of a table are hidden (70 % of a picture's pixels); rank and ridge of ours, and the
settings of theirs, are those with the least error on a tenth of the rest. `skewed`: most entries in few rows and
columns, each method to the same stopping test. `counts`: the steps and the accuracy that were asked for.
"""

import functools
import itertools
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np

from solvers import DenseMeasurements, WholeMatrix, complete, matrix_sensing, robust_recovery
from solvers.problems.lowrank import entries, gaussian

RANKS, RIDGES = (4, 8, 16), (0.5, 2.0, 6.0)


def tables(quick: bool) -> dict:
    """Return tables with the share of entries that is hidden; columns of the patients' in units of their spread."""
    from sklearn.datasets import load_breast_cancer, load_digits, load_sample_image

    picture = load_sample_image("china.jpg")[::3, ::3].mean(axis=2) / 255
    patients = load_breast_cancer().data
    found = {
        "breast cancer, 569 x 30": ((patients - patients.mean(0)) / patients.std(0), 0.5),
        "digits, 1797 x 64": (load_digits().data[: 300 if quick else None] / 16, 0.5),
        f"picture china.jpg, {picture.shape[0]} x {picture.shape[1]}": (picture, 0.7),
    }
    return dict(list(found.items())[: 1 if quick else None])


@functools.partial(jax.jit, static_argnums=(3, 4))
def completed(rows, cols, values, shape, rank, ridge):
    """Return the matrix that `complete` finds, and whether it converged."""
    sol = complete(rows, cols, values, shape, rank, biases=True, ridge=ridge, tol=1e-4, max_steps=60)
    return sol.matrix, sol.converged


def by_completion(table, known, rank: int, ridge: float):
    """Return the table filled by `complete`; places that are not known have a negative index."""
    rows, cols = (x.ravel() for x in np.indices(table.shape))
    rows = np.where(known.ravel(), rows, -1)
    given = jnp.asarray(rows), jnp.asarray(cols), jnp.asarray(np.where(known, table, 0).ravel())
    matrix, converged = completed(*given, table.shape, rank, jnp.asarray(ridge, table.dtype))
    return np.asarray(matrix), bool(converged)


def by_imputer(make):
    """Return a function that fills a table by one of scikit-learn's imputers, along the shorter side."""

    def fill(table, known, *settings):
        holes = np.where(known, table, np.nan)
        flip = holes.shape[0] < holes.shape[1]
        holes = holes.T if flip else holes
        filled = make(*settings).set_params(keep_empty_features=True).fit_transform(holes)
        return (filled.T if flip else filled), True

    return fill


def contestants(quick: bool) -> dict:
    """Return ``fill(table, known, *settings)`` and the settings to choose from, by name."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
    from sklearn.linear_model import BayesianRidge

    nearest = by_imputer(lambda k, w: KNNImputer(n_neighbors=k, weights=w))
    ridge = by_imputer(
        lambda near: IterativeImputer(BayesianRidge(), n_nearest_features=near, max_iter=10, random_state=5)
    )
    return {
        "complete, biases and ridge": (by_completion, list(itertools.product(RANKS, RIDGES))[:: 4 if quick else 1]),
        "KNNImputer": (nearest, list(itertools.product((3, 5, 10, 20, 40), ("uniform", "distance")))),
        "IterativeImputer, BayesianRidge": (ridge, [(10,), (20,), (None,)]),
        "SimpleImputer, mean": (by_imputer(SimpleImputer), [()]),
    }


def held_out(options, name: str, table, share: float) -> list[dict]:
    """Choose settings on a tenth of the known entries, fit again on all known, judge on the hidden."""
    rng, rows = np.random.default_rng(5), []
    known = rng.random(table.shape) >= share
    check = known & (rng.random(table.shape) < 0.1)
    spread, picture = np.std(table[~known]), min(table.shape) > 100

    def error(filled, places):
        return float(np.sqrt(np.mean((filled - table)[places] ** 2)) / spread)

    for method, (fill, settings) in contestants(options.quick).items():
        # A rank above the table's cannot be asked for; regressions on all columns of a picture take hours.
        tried = [s for s in settings if s[:1] != (None,) or not picture]
        tried = [s for s in tried if fill is not by_completion or s[0] <= min(table.shape)]
        scores = [error(fill(table, known & ~check, *s)[0], check) for s in tried]
        best = tried[int(np.argmin(scores))]
        begin = time.perf_counter()
        filled, converged = fill(table, known, *best)
        rows.append({
            "part": "held_out", "case": f"{name}, {share:.0%} hidden", "method": method,
            "hidden_error_over_spread": error(filled, ~known), "settings": str(best), "tried": len(tried),
            "converged": converged, "seconds": time.perf_counter() - begin,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def skewed(options) -> list[dict]:
    """Solve with places drawn by popularity, from even to most entries in few rows and columns."""
    n, m, k, rows = (200, 4_000, 2, []) if options.quick else (300, 9_000, 3, [])
    for exponent in (0.0, 0.7, 1.1):
        rng = np.random.default_rng(5)
        weight = 1 / np.arange(1, n + 1) ** exponent
        places = rng.choice(n, (2, 4 * m), p=weight / weight.sum())
        places = np.unique(np.concatenate([places.T, rng.integers(0, n, (m // 2, 2))]), axis=0)
        places = rng.permutation(places)[:m]
        left, right = rng.standard_normal((n, k)), rng.standard_normal((n, k))
        left, right = left * 10 ** rng.uniform(-1, 1, (n, 1)), right * 10 ** rng.uniform(-1, 1, (n, 1))
        i, j = (jnp.asarray(x) for x in places.T)
        values = jnp.asarray(np.sum(left[places[:, 0]] * right[places[:, 1]], axis=1))
        degrees = np.bincount(places[:, 0], minlength=n)
        for method, inner in (("als_cg", 2), ("als_cg", 5), ("als_exact", 1), ("sketched", 2)):
            solve = jax.jit(lambda i, j, v, method=method, inner=inner: complete(
                i, j, v, (n, n), k, method=method, inner_steps=inner, tol=1e-9, max_steps=200))  # fmt: skip
            jax.block_until_ready(solve(i, j, values))
            run = harness.clock(lambda solve=solve, i=i, j=j, v=values: solve(i, j, v), repeat=3, budget=5)
            sol = run.output
            test = rng.integers(0, n, (2, 20_000))
            truth = np.sum(left[test[0]] * right[test[1]], axis=1)
            miss = np.asarray(sol.predict(*jnp.asarray(test))) - truth
            rows.append({
                "part": "skewed", "case": f"popularity 1/i^{exponent}, n={n}, {len(places)} entries, rank {k}",
                "method": f"{method}, {inner} inner steps" if method != "als_exact" else method,
                "least_and_most_in_a_row": f"{degrees.min()} .. {degrees.max()}", "sweeps": int(sol.num_steps),
                "converged": bool(sol.converged), "error": float(sol.error), "residual": float(sol.residual),
                "hidden_error": float(np.linalg.norm(miss) / np.linalg.norm(truth)), "seconds": run.seconds,
            })  # fmt: skip
    return rows


def counts(options) -> list[dict]:
    """Count steps: completion to 1e-12, preconditioned sensing at twice the rank, robust recovery with outliers."""
    del options
    rng, rows = np.random.default_rng(5), []

    def relative(found, truth):
        return float(np.linalg.norm(np.asarray(found) - truth) / np.linalg.norm(truth))

    i, j, values, X = (np.asarray(x) for x in entries(5, (400, 400), 5, 0.15))
    half_steps, error = 0, 1.0
    while error > 1e-12 and half_steps < 80:
        half_steps += 2
        sol = complete(jnp.asarray(i), jnp.asarray(j), jnp.asarray(values), X.shape, 5, tol=0.0,
                       max_steps=half_steps // 2)  # fmt: skip
        error = relative(sol.matrix, X)
    rows.append({"part": "counts", "case": "400 x 400, rank 5, 15 % of the entries", "method": "complete als_cg",
                 "steps": half_steps, "unit": "half steps to 1e-12", "error": error})  # fmt: skip
    u = np.linalg.qr(rng.standard_normal((30, 3)))[0]
    X = u @ u.T
    for method, symmetric in itertools.product(("preconditioned", "gd"), (True, False)):
        sol = matrix_sensing(WholeMatrix((30, 30)), jnp.asarray(X), 6, method=method, symmetric=symmetric, init="small",
                             key=jax.random.key(9), tol=1e-12, max_steps=20_000)  # fmt: skip
        rows.append({"part": "counts", "case": f"twice the rank, {'' if symmetric else 'a'}symmetric",
                     "method": f"matrix_sensing {method}", "steps": int(sol.num_steps), "unit": "steps to 1e-12",
                     "error": relative(sol.matrix, X)})  # fmt: skip
    d, r, m = 20, 3, 600
    for symmetric, rank, outliers in itertools.product((True, False), (r, d), (0.0, 0.1, 0.3)):
        A, y, X, _ = gaussian(5, m, (d, d), r, outliers=outliers, symmetric=symmetric)
        sol = robust_recovery(DenseMeasurements(jnp.asarray(A)), jnp.asarray(y), rank, symmetric=symmetric,
                              max_steps=2000)  # fmt: skip
        rows.append({"part": "counts", "case": f"{outliers:.0%} outliers, rank {rank} for {r}, "
                     f"{'' if symmetric else 'a'}symmetric, {m} measurements of {d} x {d}", "method": "robust_recovery",
                     "steps": int(sol.num_steps), "unit": "steps to 1e-9 of the good ones",
                     "error": relative(sol.matrix, X), "converged": bool(sol.converged)})  # fmt: skip
    return rows


def main() -> None:
    """Run what was chosen and save."""
    options = harness.arguments(__doc__)
    jax.config.update("jax_enable_x64", True)
    parts = {
        f"held_out {name}": lambda options, name=name, table=table: held_out(options, name, *table)
        for name, table in tables(options.quick).items()
    }
    parts["counts"] = counts
    record = harness.machine("equinox", "scikit-learn")
    key = ("part", "case", "method")
    harness.run_parts(options, "lowrank_data", parts, key=key, record=record)
    harness.run_parts(options, "lowrank_skewed", {"skewed": skewed}, key=key, record=record)


if __name__ == "__main__":
    main()
