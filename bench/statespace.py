"""State-space models: kernels of diagonal layers, perturbed diagonalisation, smoothing, beside others.

python bench/statespace.py [--quick] [--only kernel,ptd,smoother] [--gpu]

Kernel: all kernels of a layer against the product that forms an array of channels x poles x length. PTD: condition and
certified H-infinity error. Smoother: marginals of a Matern-3/2 process, 40 % of irregular points missing, judged
against a square-root smoother in float64. With ``--gpu`` longer sequences, in both precisions.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

import harness  # noqa: E402

from solvers import DiagonalSSM, Matern, gp_regression, hinf_distance, hippo  # noqa: E402
from solvers.statespace import LinearSystem, ptd, to_sde  # noqa: E402
from solvers.statespace.initialization import normal_legs  # noqa: E402

PEERS = ("dynamax", "tinygp", "equinox")


def kernel(options) -> list[dict]:
    """Return seconds, bytes and error of both products; the error is against NumPy in double precision."""
    H, N, L = 256, 32, 16_384
    rows = []
    for dtype in (np.float32, np.float64) if options.gpu else (np.float32,):
        layer = DiagonalSSM.create("s4d_lin", channels=H, states=N, key=jax.random.key(7), dtype=dtype)

        def naive(layer):
            log_a, w = layer.discretize()
            steps = jnp.arange(L).astype(log_a.real.dtype)
            return 2 * jnp.sum(w[..., None] * jnp.exp(log_a[..., None] * steps), 1).real

        exact = jax.tree.map(lambda x: np.asarray(x, float), layer)
        step, some = np.exp(exact.log_step), np.linspace(0, L - 1, 513).astype(int)
        poles = -np.exp(exact.log_decay) + 1j * exact.frequency
        gain = np.expm1(step[:, None] * poles) / poles * (exact.weights @ np.array([1, 1j]))
        truth = 2 * np.einsum("hn,hnl->hl", gain, np.exp((step[:, None] * poles)[..., None] * some)).real
        both = {"two levels": lambda m: m.kernel(L), "naive": naive}
        programs = {name: harness.compiled(call, layer) for name, call in both.items()}
        times = harness.alternate({k: functools.partial(p, layer) for k, p in programs.items()}, repeat=3)
        for name, program in programs.items():
            error = np.max(np.abs(np.asarray(times[name].output, float)[:, some] - truth)) / np.max(np.abs(truth))
            rows.append({
                "part": "kernel", "instance": f"H {H}, N {N}, L {L}", "contestant": name, "dtype": np.dtype(dtype).name,
                "seconds": min(times[name].runs), "compile_seconds": program.first_call_seconds,
                "megabytes": (program.temporary_bytes + program.output_bytes) / 1e6,
                "working_megabytes": program.temporary_bytes / 1e6, "error": error,
            })  # fmt: skip
    return rows


def perturbation(options) -> list[dict]:
    """Return condition and certified distance for S4D and both perturbations."""
    rows = []
    for N in (16, 32) if options.quick else (16, 32, 64):
        A, B = hippo("legs", N)
        exact = LinearSystem(A, B, np.eye(N)[0])
        normal, U = normal_legs(N)
        systems = {"S4D": (LinearSystem(normal, U.conj().T @ B / 2, U[0]), 1.0)}
        for method in ("random", "optimal"):
            poles, gains, V = ptd(N, method=method)
            systems[f"PTD, {method}"] = (LinearSystem(poles, gains, V[0]), float(np.linalg.cond(V)))
        for name, (system, condition) in systems.items():
            timing = harness.clock(lambda s=system: hinf_distance(exact, s), repeat=1)  # noqa: B023
            found = timing.output
            rows.append({
                "part": "ptd", "instance": f"N {N}", "contestant": name, "condition": condition,
                "seconds": timing.seconds, "hinf": found.upper, "error": found.error, "solved": found.converged,
            })  # fmt: skip
    return rows


def dynamax_smoother(t, y, seen, noise, parallel):
    """Return a function of the data and its arguments: dynamax's smoother with the same matrices."""
    from dynamax.linear_gaussian_ssm import inference, parallel_inference

    sde = to_sde(Matern(0.5, 1.0, 1.5))
    A, Q = sde.transition(jnp.diff(t))
    # its entry t is the transition into step t, so that the first is never used
    A = jnp.concatenate([jnp.eye(2)[None], A])
    Q = jnp.concatenate([jnp.eye(2)[None], Q])
    H = sde.observation()[None]
    R = jnp.where(seen, noise, 1e12)[:, None, None]  # it knows no missing data
    initial = inference.ParamsLGSSMInitial(mean=jnp.zeros(2), cov=sde.stationary())
    smoother = parallel_inference.lgssm_smoother if parallel else inference.lgssm_smoother

    def call(A, Q, R, y):
        dynamics = inference.ParamsLGSSMDynamics(weights=A, bias=jnp.zeros(2), input_weights=jnp.zeros((2, 0)), cov=Q)
        emissions = inference.ParamsLGSSMEmissions(weights=H, bias=jnp.zeros(1), input_weights=jnp.zeros((1, 0)), cov=R)
        params = inference.ParamsLGSSM(initial=initial, dynamics=dynamics, emissions=emissions)
        return smoother(params, y[:, None]).smoothed_means @ H[0]

    return call, (A, Q, R, jnp.where(seen, y, 0.0))


def tinygp_smoother(t, y, seen, noise):
    """Return a function of the data and its arguments: tinygp's quasiseparable process, at all times."""
    from tinygp import GaussianProcess
    from tinygp.kernels import quasisep

    kept = np.flatnonzero(np.asarray(seen))

    def call(t, given, y):
        process = GaussianProcess(quasisep.Matern32(scale=0.5, sigma=1.0), given, diag=noise)
        return process.predict(y, X_test=t)

    return call, (t, t[kept], y[kept])


def smoother(options) -> list[dict]:
    """Return seconds, compilation and error of smoothers."""
    rows = []
    for T in (10_000, 1_000_000) if options.gpu else (10_000,):
        rng = np.random.default_rng(5)
        t = np.sort(rng.random(T)) * T / 50
        y, seen = np.sin(t) + 0.1 * rng.standard_normal(T), rng.random(T) > 0.4
        data = {d: (jnp.asarray(t, d), jnp.asarray(y, d), jnp.asarray(seen)) for d in (np.float64, np.float32)}

        def ours(t, y, seen, form, method):
            return gp_regression(Matern(0.5, 1.0, 1.5), t, y, 0.01, observed=seen, form=form, method=method).mean

        judge = jax.jit(functools.partial(ours, form="square_root", method="parallel"))
        truth = np.asarray(judge(*data[np.float64]))
        entries = [(np.float64, "covariance", m) for m in ("sequential", "parallel")]
        entries += [(np.float32, "covariance", "parallel"), (np.float32, "square_root", "parallel")]
        contestants = {
            (f"solvers, {form}, {method}", np.dtype(d).name): (
                functools.partial(ours, form=form, method=method),
                data[d],
            )
            for d, form, method in entries
            if not (T > 100_000 and method == "sequential")
        }
        if T <= 10_000:
            for parallel in (False,) if options.quick else (False, True):  # compiling the parallel one takes minutes
                try:
                    name = ("dynamax, " + ("parallel" if parallel else "sequential"), "float64")
                    contestants[name] = dynamax_smoother(*data[np.float64], 0.01, parallel)
                except Exception as cause:
                    print(f"dynamax left out: {type(cause).__name__}: {cause}", file=sys.stderr)
            try:
                contestants["tinygp, quasiseparable", "float64"] = tinygp_smoother(*data[np.float64], 0.01)
            except ImportError:
                print("tinygp is not installed", file=sys.stderr)
        for (name, dtype), (call, args) in contestants.items():
            row = {"part": "smoother", "instance": f"T {T:,}, D 2", "contestant": name, "dtype": dtype}
            try:
                program = harness.compiled(call, *args)
                timing = harness.clock(lambda p=program, a=args: p(*a), repeat=7, budget=10, warm=True)
                error = float(np.max(np.abs(np.asarray(timing.output, float) - truth)))
                row |= {
                    "seconds": timing.seconds, "best_seconds": min(timing.runs), "error": error,
                    "compile_seconds": program.first_call_seconds,
                }  # fmt: skip
            except Exception as cause:
                row |= {"failed": f"{type(cause).__name__}: {str(cause)[:80]}"}
            rows.append(row)
    return rows


PARTS = {"kernel": kernel, "ptd": perturbation, "smoother": smoother}
TITLES = {
    "kernel": "kernel of a layer: two levels or naive",
    "ptd": "distance from HiPPO, N = 16, 32, 64",
    "smoother": "Kalman smoother",
}
LABELS = {
    "kernel": ("seconds", "relative error"),
    "ptd": ("condition of the eigenvectors", "H-infinity error"),
    "smoother": ("seconds", "error of the mean"),
}


FILLS = (("float64", "full"), ("float32", "none"), ("mixed", "left"), (None, "full"))


def draw(found: list[dict], record: dict, path) -> None:
    """Draw seconds against error, one panel a part."""
    fig, axes = harness.figure(1, 3, height=3.6)
    for ax, part in zip(axes, PARTS, strict=True):
        rows = [r for r in found if r["part"] == part and r.get("seconds")]
        if not rows:
            continue
        across, measure = ("condition", "hinf") if part == "ptd" else ("seconds", "error")
        names = dict.fromkeys(r["contestant"] for r in rows)
        colours = harness.colours(names, lambda name: name.startswith(("solvers", "PTD", "two levels")))
        for name, colour in colours.items():
            for dtype, fill in FILLS:
                own = [r for r in rows if r["contestant"] == name and r.get("dtype") == dtype]
                label = f"{name}, {dtype}" if dtype else name
                if own:
                    across_all, down = [r[across] for r in own], [max(r[measure], 1e-17) for r in own]
                    ax.loglog(across_all, down, "o", label=label, color=colour, fillstyle=fill)
        xlabel, ylabel = LABELS[part]
        ax.set(title=TITLES[part], xlabel=xlabel, ylabel=ylabel, ylim=(1e-16, 10) if part != "ptd" else (1e-4, 2))
        ax.set_xlim(ax.get_xlim()[0] / 1.5, ax.get_xlim()[1] * 1.5)
        harness.plain_ticks(ax.xaxis)
        ax.legend(frameon=False, fontsize=6, bbox_to_anchor=(0, -0.25), loc="upper left")
    fig.tight_layout()
    harness.save_figure(fig, path, record)


def main() -> int:
    """Run the chosen parts, print, save, draw."""
    options = harness.arguments(__doc__)
    name = "statespace_gpu" if options.gpu else "statespace"
    key = ("part", "instance", "contestant", "dtype")
    result = harness.run_parts(options, name, PARTS, key=key, record=harness.machine(*PEERS))
    if result:
        draw(result["rows"], result["machine"], options.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
