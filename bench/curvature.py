"""Curvature: a step of windowed M-FAC against the bandwidth it needs, traces beside other packages.

``--gpu`` runs the M-FAC step at m = 512, d = 270,000 in float32 (with ``--quick`` a small one) and its correctness in
both precisions. Without it the step is smaller; then traces at 60 products with the coverage of 95 % intervals, beside
traceax and matfree, and over 1,000 keys; moments of a spectral density; the Hessian of a head, exact and by probes.
"""

import time

import curvature_peers as peers
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import t as student

from solvers import head_hessian, scale_by_mfac, spectral_density, trace
from solvers.core.probes import probes

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
    begin = time.perf_counter()
    for t in range(repeat):
        update, state = step(grads[t % 4], state)
    jax.block_until_ready(update)
    together = (time.perf_counter() - begin) / repeat
    window, g = state.grads, grads[0]
    read = jax.jit(lambda w, x: jnp.matmul(w, x, precision="highest"))
    once = harness.clock(lambda: read(window, g), repeat=repeat, warm=True).seconds
    gram = state.gram + jnp.eye(m, dtype=jnp.float32) * state.shift
    anew = harness.clock(lambda: jax.jit(jnp.linalg.cholesky)(gram), repeat=repeat, warm=True).seconds
    case, size, seconds = f"m={m} d={d}", 4 * m * d, float(np.median(runs))
    rows = [("step", seconds, 2 * size), ("steps in a row", together, 2 * size), ("read the window once", once, size)]
    found = [
        {"part": "mfac", "case": case, "method": name, "milliseconds": 1e3 * s,
         "gigabytes_per_second": read_bytes / s / 1e9, "over_one_read": s / once}
        for name, s, read_bytes in rows
    ]  # fmt: skip
    return [*found, {"part": "mfac", "case": case, "method": "one Cholesky of m x m", "milliseconds": 1e3 * anew}]


def mfac_error(dtype: str, m: int = 64, d: int = 3000, damping: float = 0.1) -> dict:
    """Compare steps past a full window with a dense solve in NumPy's float64, in the span of the window."""
    rng = np.random.default_rng(5)
    g = rng.standard_normal((m + 40, d))
    transform, worst = scale_by_mfac(m, damping), 0.0
    step, state = jax.jit(transform.update), transform.init(jnp.zeros(d, dtype))
    for t, row in enumerate(g):
        update, state = step(jnp.asarray(row, dtype), state)
        if t >= m and t % 10 == 0:
            window = g[t - m + 1 : t + 1]
            truth = window.T @ np.linalg.solve(damping * np.eye(m) + window @ window.T / m, np.eye(m)[-1])
            worst = max(worst, np.linalg.norm(np.asarray(update, float) - truth) / np.linalg.norm(truth))
    return {"part": "mfac", "case": f"m={m} d={d} {dtype}", "method": "relative error", "error": worst}


def traces(keys: int, n: int = 500, products: int = 60, part: str = "trace") -> list[dict]:
    """Median relative error and coverage of the 95 % interval at equal products, ours and, for "trace", others'."""
    q = np.linalg.qr(np.random.default_rng(5).standard_normal((n, n)))[0]
    matrices = jnp.stack([jnp.asarray((q * spectrum(n)) @ q.T) for spectrum in SPECTRA.values()])
    exact = np.array([spectrum(n).sum() for spectrum in SPECTRA.values()])
    several = jax.random.split(jax.random.key(7), keys)

    def over(one):
        return jax.jit(lambda s, k: jax.lax.map(lambda a: jax.lax.map(lambda key: one(a, key), k), s))

    rows = []

    def report(method, value, low, high, errors, used):
        for i, name in enumerate(SPECTRA):
            off = np.asarray(value[i]) - exact[i]
            covered = np.mean((low[i] <= exact[i]) & (exact[i] <= high[i]))
            claimed = np.sqrt(np.mean(np.asarray(errors[i]) ** 2))
            rows.append({
                "part": part, "case": name, "method": method, "products": used, "keys": keys,
                "error": float(np.median(abs(off)) / exact[i]),
                "coverage": float(covered) if np.isfinite(claimed) else None,
                "error_over_claimed": float(np.sqrt(np.mean(off**2)) / claimed),
            })  # fmt: skip

    for method in METHODS:
        one = lambda a, k, method=method: trace(a, k, method=method, rtol=0.0, max_products=products)  # noqa: E731
        found = over(one)(matrices, several)
        report(f"ours {method}", found.value, *found.interval(), found.standard_error, int(found.num_products[0, 0]))
    for name, one in peers.trace_estimators(products, n).items() if part == "trace" else ():
        value, error, degrees = (np.asarray(x) for x in over(one)(matrices, several))
        width = student.ppf(0.975, degrees) * error
        report(name, value, value - width, value + width, error, products)
    return rows


def head() -> list[dict]:
    """Compare the diagonal of a head's Hessian with 300 probes of it: error and floating-point operations."""
    rng = np.random.default_rng(5)
    x, w = jnp.asarray(rng.standard_normal((256, 32))), jnp.asarray(rng.standard_normal((7, 32)) / 6)
    labels = jnp.asarray(rng.integers(0, 7, 256))
    loss = lambda w: optax.softmax_cross_entropy_with_integer_labels(x @ w.T, labels).mean()  # noqa: E731
    dense = np.diag(np.asarray(jax.hessian(loss)(w)).reshape(224, 224))

    def sampled(w):
        z = probes("rademacher", jax.random.key(7), 300, w)
        product = lambda v: v * jax.jvp(jax.grad(loss), (w,), (v,))[1]  # noqa: E731
        return jnp.mean(jax.vmap(product)(z), axis=0)

    rows = []
    exact = lambda w: head_hessian(x, w).diagonal()  # noqa: E731
    for name, call in (("exact", exact), ("300 probes", sampled)):
        compiled = jax.jit(call).lower(w).compile()
        cost = compiled.cost_analysis() or {}
        error = np.linalg.norm(np.asarray(compiled(w)).ravel() - dense) / np.linalg.norm(dense)
        flops = float(cost.get("flops", np.nan))
        rows.append({"part": "head", "case": "C=7 d=32 n=256", "method": name, "error": error, "flops": flops})
    return rows


def moments() -> list[dict]:
    """Compare moments 0 to 10 of a spectral density with those of its probes by a dense eigendecomposition."""
    key, n = jax.random.key(7), 200
    q, values = np.linalg.qr(np.random.default_rng(5).standard_normal((n, n)))[0], np.linspace(-1, 2, n)
    found = spectral_density(jnp.asarray((q * values) @ q.T), key, num_steps=10, num_probes=4)
    z = np.asarray(probes("sphere", key, 4, jax.ShapeDtypeStruct((n,), jnp.float64)))
    shares = n * (z @ q) ** 2 / np.sum(z**2, axis=1, keepdims=True)
    exact = [np.mean(shares @ values**p) for p in range(11)]
    worst = max(abs(float(found.moment(p).value) - e) / np.sum(abs(values) ** p) for p, e in enumerate(exact))
    return [{"part": "moments", "case": f"0 to 10, n={n}", "method": "ours", "error": worst}]


def mfac(options) -> list[dict]:
    """Time and check windowed M-FAC."""
    m, d = (512, 270_000) if options.gpu and not options.quick else (128, 20_000)
    timed = mfac_step(m, d, repeat=50 if options.gpu else 10)
    return [*timed, mfac_error("float64"), mfac_error("float32")]


PARTS = {
    "mfac": mfac,
    "trace": lambda options: traces(20 if options.quick else 200),
    "coverage": lambda options: traces(50 if options.quick else 1000, 200, part="coverage"),
    "moments": lambda options: moments(),
    "head": lambda options: head(),
}


def main() -> None:
    """Run what was chosen and save."""
    options = harness.arguments(__doc__)
    jax.config.update("jax_enable_x64", True)
    record = harness.machine("optax", "equinox", "traceax", "matfree")
    parts = {"mfac": mfac} if options.gpu else PARTS
    stem = "curvature_gpu" if options.gpu else "curvature"
    harness.run_parts(options, stem, parts, key=("part", "case", "method"), record=record)


if __name__ == "__main__":
    main()
