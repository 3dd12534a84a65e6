"""Completion at size: seconds a sweep of alternating least squares, beside the seconds of reading the entries once.

    python bench/lowrank.py          10,000 x 10,000 with a million entries, rank 20; 100,000 x 100,000, 1e7, rank 50
    python bench/lowrank.py --gpu    100,000 x 100,000 with 1e7 and 1e8 entries, rank 50, made on the device

A sweep takes the difference of two solves with different numbers of sweeps, so that sorting and the start are apart.
`implicit` is the peer at size: alternating least squares by three CG steps a half step, for its own loss (confidence
weights on all places), in float32 on all cores.
"""

import functools
import os
import time

os.environ.setdefault("JAX_ENABLE_X64", "1")

import harness
import jax
import jax.numpy as jnp
import numpy as np

from solvers import complete

FEW, MANY = 2, 5
LONG = 10**7
"""From so many entries on a CPU takes fewer sweeps, once each."""


def entries(key, n, m, k, dtype):
    """Return random places of a random matrix of rank k, and its values there."""
    one, two, three, four = jax.random.split(key, 4)
    rows, cols = (jax.random.randint(x, (m,), 0, n, jnp.int32) for x in (one, two))
    left, right = (jax.random.normal(x, (n, k), dtype) for x in (three, four))
    values = jax.lax.map(lambda ij: jnp.sum(left[ij[0]] * right[ij[1]]), (rows, cols), batch_size=1 << 18)
    return rows, cols, values, left, right


made = functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))(entries)


def seconds(program, *args, runs: int = 2):
    """Return the least time of some runs, and the output."""
    best = float("inf")
    for _ in range(runs):
        begin = time.perf_counter()
        output = jax.block_until_ready(program(*args))
        best = min(best, time.perf_counter() - begin)
    return best, output


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def named(n, m, k, method, dtype) -> dict:
    """Return the columns that name a row."""
    return {"rows": n, "entries": m, "rank": k, "method": method, "dtype": jnp.dtype(dtype).name}


def size(n, m, k, method, dtype) -> list[dict]:
    """Measure one instance."""
    rows, cols, values, left, right = jax.block_until_ready(made(jax.random.key(23), n, m, k, dtype))

    @jax.jit
    def solve(rows, cols, values, sweeps):
        sol = complete(rows, cols, values, (n, n), k, method=method, max_steps=sweeps, tol=0.0)
        return sol.left, sol.right, sol.residual, sol.error

    long = m >= LONG and jax.default_backend() == "cpu"
    runs, low, high = (1, 1, 3) if long else (2, FEW, MANY)
    begin = time.perf_counter()
    jax.block_until_ready(solve(rows, cols, values, jnp.int32(0)))
    first = time.perf_counter() - begin
    few, _ = seconds(solve, rows, cols, values, jnp.int32(low), runs=runs)
    print(f"first call {first:.1f} s, {low} sweeps {few:.1f} s", flush=True)
    many, (found, other, residual, error) = seconds(solve, rows, cols, values, jnp.int32(high), runs=runs)
    read, _ = seconds(jax.jit(lambda r, c, v: jnp.sum(v) + jnp.sum(r * c)), rows, cols, values)
    test = jax.random.randint(jax.random.key(5), (2, 20_000), 0, n, jnp.int32)
    truth = jnp.sum(left[test[0]] * right[test[1]], axis=1)
    miss = jnp.sum(found[test[0]] * other[test[1]], axis=1) - truth
    sweep = (many - few) / (high - low)
    return [{
        **named(n, m, k, method, dtype), "sweep_seconds": sweep,
        "rest_seconds": few - low * sweep, "first_call_seconds": first, "read_seconds": read,
        "sweep_over_read": sweep / read,
        "residual_after": float(residual), "hidden_error_after": float(jnp.linalg.norm(miss) / jnp.linalg.norm(truth)),
        "sweeps": high, "error_after": float(error), "cores": cores(),
    }]  # fmt: skip


def implicit_size(n, m, k) -> list[dict]:
    """Time a sweep of `implicit` on the same places, squared values as confidence."""
    import scipy.sparse as sp

    row = named(n, m, k, "implicit 3 CG steps", jnp.float32)
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ImportError:
        return [{**row, "failure": "not installed"}]
    rows, cols, values, *_ = (np.asarray(x) for x in made(jax.random.key(23), n, m, k, jnp.float32))
    matrix = sp.csr_matrix((values**2, (rows, cols)), shape=(n, n), dtype=np.float32)
    times = []
    for sweeps in (1, 3):
        model = AlternatingLeastSquares(factors=k, iterations=sweeps, calculate_training_loss=False, random_state=5)
        begin = time.perf_counter()
        model.fit(matrix, show_progress=False)
        times.append(time.perf_counter() - begin)
    return [{**row, "sweep_seconds": (times[1] - times[0]) / 2, "cores": cores()}]


def parts(options) -> dict:
    """Return what there is to measure by name."""
    jobs = [(10_000, 10**6, 20, m, d) for m in ("als_cg", "als_exact") for d in (jnp.float32, jnp.float64)]
    jobs += [(100_000, 10**7, 50, "als_cg", jnp.float32)]
    if options.quick:
        jobs = [(1_000, 50_000, 5, m, jnp.float32) for m in ("als_cg", "als_exact", "sketched")]
    if options.gpu:
        jobs = [(100_000, m, 50, "als_cg", jnp.float32) for m in (10**7, 10**8)]
        jobs.insert(1, (100_000, 10**7, 50, "als_exact", jnp.float32))
        jobs.insert(1, (100_000, 10**7, 50, "als_cg", jnp.float64))
    found = {}
    for job in jobs:
        n, m, _, method, dtype = job
        found[f"{n} x {n}, {m} entries, {method} {jnp.dtype(dtype).name}"] = lambda _, job=job: size(*job)
    if not options.gpu:
        n, m, k = (1_000, 50_000, 5) if options.quick else (100_000, 10**7, 50)
        found[f"{n} x {n}, {m} entries, implicit"] = lambda _: implicit_size(n, m, k)
    return found


def main():
    options = harness.arguments(__doc__)
    stem = "lowrank_gpu" if options.gpu else "lowrank"
    key = ("rows", "entries", "rank", "method", "dtype")
    harness.run_parts(options, stem, parts(options), key=key, record=harness.machine("equinox", "implicit"))


if __name__ == "__main__":
    main()
