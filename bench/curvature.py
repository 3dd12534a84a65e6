"""Curvature: a step of windowed M-FAC against the bandwidth it needs, and traces at equal numbers of products.

``--gpu`` runs the M-FAC step at m = 512, d = 270,000 in float32 with correctness checks in both precisions; without it
the step is smaller and the traces are compared with one another on three spectra.
"""

import time

import harness
import jax
import jax.numpy as jnp
import numpy as np

from solvers import scale_by_mfac, trace

SPECTRA = {
    "0.7^i": lambda n: 0.7 ** np.arange(n),
    "1/i^2": lambda n: 1 / np.arange(1, n + 1.0) ** 2,
    "flat 1..3": lambda n: np.linspace(1, 3, n),
}
METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace")


def mfac_step(m: int, d: int, repeat: int) -> list[dict]:
    """Time a step with a full window, its state donated, beside reading the window once and a step factored anew."""
    transform = scale_by_mfac(m, 1e-5)
    step = jax.jit(transform.update, donate_argnums=1)
    grads = [jax.random.normal(jax.random.key(k), (d,), jnp.float32) for k in range(4)]
    state = transform.init(grads[0])
    for t in range(m + 4):
        update, state = step(grads[t % 4] + 1e-2 * t, state)
    jax.block_until_ready(update)
    runs = []
    for t in range(repeat):
        begin = time.perf_counter()
        update, state = step(grads[t % 4], state)
        jax.block_until_ready(update)
        runs.append(time.perf_counter() - begin)
    window, g = state.grads, grads[0]
    read = jax.jit(lambda w, x: jnp.matmul(w, x, precision="highest"))
    once = harness.clock(lambda: read(window, g), repeat=repeat, warm=True).seconds
    gram = state.gram + jnp.eye(m, dtype=jnp.float32) * state.shift
    anew = harness.clock(lambda: jax.jit(jnp.linalg.cholesky)(gram), repeat=repeat, warm=True).seconds
    seconds = float(np.median(runs))
    size = 4 * m * d
    return [
        {"part": "mfac", "case": f"m={m} d={d}", "method": "step", "milliseconds": 1e3 * seconds,
         "gigabytes_per_second": 2 * size / seconds / 1e9, "over_one_read": seconds / once},
        {"part": "mfac", "case": f"m={m} d={d}", "method": "read the window once", "milliseconds": 1e3 * once,
         "gigabytes_per_second": size / once / 1e9},
        {"part": "mfac", "case": f"m={m} d={d}", "method": "one Cholesky of m x m", "milliseconds": 1e3 * anew},
    ]  # fmt: skip


def mfac_error(dtype: str, m: int = 64, d: int = 3000) -> dict:
    """Compare steps past a full window with a dense solve in NumPy's float64, in the span of the window."""
    rng = np.random.default_rng(5)
    g = rng.standard_normal((m + 40, d))
    transform, worst = scale_by_mfac(m, 0.1), 0.0
    step, state = jax.jit(transform.update), transform.init(jnp.zeros(d, dtype))
    for t, row in enumerate(g):
        update, state = step(jnp.asarray(row, dtype), state)
        if t >= m and t % 10 == 0:
            window = g[t - m + 1 : t + 1]
            truth = window.T @ np.linalg.solve(0.1 * np.eye(m) + window @ window.T / m, np.eye(m)[-1])
            worst = max(worst, np.linalg.norm(np.asarray(update, float) - truth) / np.linalg.norm(truth))
    return {"part": "mfac", "case": f"m={m} d={d} {dtype}", "method": "relative error", "error": worst}


def traces(keys: int, n: int = 300, products: int = 60) -> list[dict]:
    """Median relative error and coverage of the 95 % interval at equal products."""
    q = np.linalg.qr(np.random.default_rng(5).standard_normal((n, n)))[0]
    rows = []
    for name, spectrum in SPECTRA.items():
        values = spectrum(n)
        a, truth = jnp.asarray((q * values) @ q.T), values.sum()
        for method in METHODS:
            one = lambda k, a=a, method=method: trace(a, k, method=method, rtol=0.0, max_products=products)  # noqa: E731
            found = jax.jit(lambda k, one=one: jax.lax.map(one, k))(jax.random.split(jax.random.key(7), keys))
            low, high = found.interval()
            rows.append({
                "part": "trace", "case": name, "method": method, "products": int(found.num_products[0]),
                "error": float(np.median(abs(found.value - truth) / truth)),
                "coverage": float(np.mean((low <= truth) & (truth <= high))),
                "error_over_claimed": float(np.sqrt(np.mean((found.value - truth) ** 2) / np.mean(
                    found.standard_error**2))),
            })  # fmt: skip
    return rows


def main() -> None:
    options = harness.arguments(__doc__)
    jax.config.update("jax_enable_x64", True)
    record = harness.machine("optax", "equinox")
    rows = []
    if harness.chosen("mfac", options.only):
        m, d = (512, 270_000) if options.gpu else (128, 20_000)
        rows += mfac_step(m, d, repeat=50 if options.gpu else 10)
        rows += [mfac_error("float64"), mfac_error("float32")]
    if harness.chosen("trace", options.only) and not options.gpu:
        rows += traces(keys=20 if options.quick else 200)
    for part in dict.fromkeys(row["part"] for row in rows):
        harness.table([row for row in rows if row["part"] == part], title=part)
    name = "curvature_gpu" if options.gpu else "curvature"
    harness.save(options.out / f"{name}.json", rows, key=("part", "case", "method"), record=record)


if __name__ == "__main__":
    main()
