"""Structured tensors: products of functions on the sphere, and tensors whose axes are functions, beside others.

python bench/tensor.py [--quick] [--only gaunt,functional,large,kinetic] [--gpu]

Gaunt: all routes, and e3nn-jax's full tensor product and its grid. Every contestant multiplies a batch of pairs of
features of degree L, one channel after the other, and returns degrees up to L. Errors are
against the contraction of all coefficients in double precision; e3nn-jax's full product computes more (each path of its
own) and has no such error. ``--gpu``: degree 10, 128 channels.

Functional: the published equations by loops over coordinates as in the authors' code (`tensor_loops`, PyTorch,
undamped, which is faster) and compiled, from one start. CP: both until their posteriors are 1e-6 apart (with precise
data the loops do not get there); that ours is the loops' fixed point is shown by a sweep of theirs from it. Tucker:
after as many sweeps, as the published equations drift there. Our defaults beside both. Large: twenty sweeps over up to
a million entries (``--gpu``). Kinetic: fluorescence over emission, excitation and time, which tensorly ships; a tenth
of the entries and no instant between 8 and 10 are shown; tensorly's PARAFAC with a mask beside ours.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

import harness  # noqa: E402

from solvers import Matern, functional_tucker, gaunt_product  # noqa: E402
from solvers.problems.tensor import scattered_waves, waves  # noqa: E402
from solvers.tensor.harmonics import gaunt_table  # noqa: E402

PEERS = ("e3nn-jax", "torch", "tensorly")


def e3nn_grid(L: int):
    """Return e3nn-jax's way by grids of the same exactness."""
    import e3nn_jax as e3nn

    irreps = e3nn.s2_irreps(L)
    nodes, points = 3 * L // 2 + 1, 3 * L + 1 + L % 2

    def call(x, y):
        grids = [
            e3nn.to_s2grid(
                e3nn.IrrepsArray(irreps, v), nodes + nodes % 2, points, quadrature="gausslegendre",
                normalization="integral", p_val=1, p_arg=-1,
            )
            for v in (x, y)
        ]  # fmt: skip
        # e3nn's "integral" takes coefficients of functions sqrt(4 pi) times ours, so one such factor is too many
        values = grids[0].grid_values * grids[1].grid_values / np.sqrt(4 * np.pi).astype(x.dtype)
        product = grids[0].replace_values(values)
        return e3nn.from_s2grid(product, irreps, normalization="integral").array

    return call


def e3nn_full(L: int):
    """Return e3nn-jax's full tensor product, filtered to degree L."""
    import e3nn_jax as e3nn

    irreps = e3nn.s2_irreps(L)

    def call(x, y):
        product = e3nn.tensor_product(e3nn.IrrepsArray(irreps, x), e3nn.IrrepsArray(irreps, y), filter_ir_out=irreps)
        return product.array

    return call


def gaunt(options) -> list[dict]:
    """Return seconds, compilation and error of all contestants."""
    rows = []
    instances = [(6, 256, np.float32), (10, 16 * 128, np.float32), (10, 16 * 128, np.float64)] if options.gpu else [
        (L, 256, d) for L in ((2,) if options.quick else (2, 4, 6, 10)) for d in (np.float32, np.float64)
    ]  # fmt: skip
    for L, batch, dtype in instances:
        rng = np.random.default_rng(5)
        x, y = (jnp.asarray(rng.standard_normal((batch, (L + 1) ** 2)), dtype) for _ in range(2))
        table = gaunt_table(L, L, L)
        few = slice(0, 64)
        truth = np.einsum("abc,na,nb->nc", table, np.asarray(x[few], float), np.asarray(y[few], float), optimize=True)
        contestants = {f"solvers, {r}": functools.partial(gaunt_product, route=r) for r in ("grid", "fourier", "dense")}
        if L > 6:
            contestants.pop("solvers, dense")
        try:
            contestants["e3nn-jax, grid"] = e3nn_grid(L)
            if L <= 6 and dtype == np.float32:
                contestants["e3nn-jax, full product"] = e3nn_full(L)
        except ImportError:
            print("e3nn-jax is not installed", file=sys.stderr)
        for name, call in contestants.items():
            row = {"part": "gaunt", "instance": f"L {L}, batch {batch}", "contestant": name}
            row["dtype"] = np.dtype(dtype).name
            try:
                program = harness.compiled(call, x, y)
                timing = harness.clock(lambda p=program, v=(x, y): p(*v), repeat=15, budget=3, warm=True)
                row |= {
                    "seconds": timing.seconds, "best_seconds": min(timing.runs),
                    "compile_seconds": program.first_call_seconds,
                }  # fmt: skip
                if timing.output.shape == x.shape:
                    found = np.asarray(timing.output[few], float)
                    row["error"] = float(np.max(np.abs(found - truth)) / np.max(np.abs(truth)))
            except Exception as cause:
                row["failed"] = f"{type(cause).__name__}: {str(cause)[:80]}"
            rows.append(row)
    return rows


def functional(options, nu: float, core: str, deviation: float) -> list[dict]:
    """Return seconds to one posterior, by loops and compiled, from the same start; for Tucker after as many sweeps."""
    from tensor_loops import Loops

    if options.gpu:
        return []
    cp = core == "cp"
    N, T, sweeps = (300, 20, 7) if options.quick else (2000, 100, 100)
    noise, R = deviation**2, 2
    coords, y = (np.asarray(v) for v in scattered_waves(jax.random.key(11), N, noise=deviation, nodes=T))
    kernel, instance = Matern(0.3, 1.0, nu), f"{core}, {N} entries, {T} nodes, noise {deviation}, Matern {nu}"

    def ours(start, y, tol, **how):
        return functional_tucker(kernel, coords, y, R, noise=noise, core=core, x0=start, tol=tol, **how)

    start = functional_tucker(kernel, coords, y, R, noise=noise, core=core, key=jax.random.key(7), max_steps=0).value
    runs = {
        "published equations, accelerated": (1e-10, {"published": True, "max_steps": 2000}),
        "published equations, plain sweeps": (0.0, {"published": True, "acceleration": 0, "max_steps": sweeps}),
        "defaults": (1e-6, {"max_steps": 1000}),
    }
    if not cp:
        runs.pop("published equations, accelerated")  # they have no fixed point within reach: the core keeps growing
    answers, rows = {}, []
    for name, (tol, how) in runs.items():
        program = harness.compiled(functools.partial(ours, tol=tol, **how), start, jnp.asarray(y))
        timing = harness.clock(lambda p=program, s=start: p(s, y), repeat=5, budget=20, warm=True)
        found = answers[name] = timing.output
        row = {"part": "functional", "instance": instance, "contestant": f"solvers, {name}", "seconds": timing.seconds}
        row |= {"compile_seconds": program.first_call_seconds, "megabytes": program.temporary_bytes / 1e6}
        rows.append(row | {"sweeps": int(found.num_steps), "solved": bool(found.converged), **judged(found, noise)})

    def loops(start):
        beliefs = jax.tree.map(np.asarray, start)
        (mean, cov), middle = beliefs[0], (np.eye(R)[:, :, None] * np.eye(R)[:, None, :], None) if cp else beliefs[1]
        return Loops(coords, y, (mean, cov, *middle), length=0.3, variance=1.0, nu=nu, noise=noise)

    rival = loops(start)
    row = {"part": "functional", "instance": instance, "contestant": "loops over coordinates, PyTorch"}
    if not cp:
        timing = harness.clock(lambda: [rival.sweep((0.0, 0.0)) for _ in range(sweeps)], repeat=1)
        apart = rival.apart(answers["published equations, plain sweeps"].beliefs.factors)
        return [*rows, row | {"seconds": timing.seconds, "sweeps": sweeps, "posterior_apart": apart}]
    fixed = answers["published equations, accelerated"]
    still = loops(fixed.value)
    still.sweep((0.0, 0.0))
    rows[0]["moved_by_a_sweep_of_the_loops"] = still.apart(fixed.beliefs.factors)
    seconds, done, apart, most = 0.0, 0, np.inf, 5 if options.quick else 120
    while apart > 1e-6 and seconds < most:
        seconds += harness.clock(lambda: [rival.sweep((0.0, 0.0)) for _ in range(10)], repeat=1).seconds
        done, apart = done + 10, rival.apart(fixed.beliefs.factors)
    return [*rows, row | {"seconds": seconds, "sweeps": done, "posterior_apart": apart, "solved": apart <= 1e-6}]


def judged(found, noise: float) -> dict:
    """Return how far predictions are from the truth, and how many fresh values are within their 90 % intervals."""
    rng = np.random.default_rng(5)
    new = rng.random((2000, 3))
    mean, variance = (np.asarray(v) for v in found.predict(new))
    truth = np.asarray(waves(new))
    away = np.abs(mean - truth - noise**0.5 * rng.standard_normal(2000))
    inside = np.mean(away < 1.645 * np.sqrt(variance + noise))
    return {"error": float(np.sqrt(np.mean((mean - truth) ** 2))), "inside_90": float(inside)}


def large(options) -> list[dict]:
    """Return seconds of twenty sweeps over many entries, by size."""
    rows = []
    for N in (3_000,) if options.quick else (1_000_000,) if options.gpu else (100_000,):
        for core, R in (("cp", 3),) if options.gpu else (("cp", 3), ("tucker", 3)):
            T, noise = 2000, 0.01
            coords, y = (np.asarray(v) for v in scattered_waves(jax.random.key(11), N, noise=0.1, nodes=T))

            def call(y, coords=coords, core=core, R=R, noise=noise):
                return functional_tucker(
                    Matern(0.3, 1.0, 0.5), coords, y, R, noise=noise, core=core, key=jax.random.key(7), max_steps=20,
                    method="parallel" if options.gpu else "sequential",
                )  # fmt: skip

            program = harness.compiled(call, jnp.asarray(y))
            timing = harness.clock(lambda p=program, y=y: p(y), repeat=3, budget=10, warm=True)
            row = {"part": "large", "instance": f"{core}, {N} entries, {T} nodes, R {R}", "contestant": "solvers"}
            row |= {"seconds": timing.seconds, "compile_seconds": program.first_call_seconds}
            row |= {"sweeps": int(timing.output.num_steps), "megabytes": program.temporary_bytes / 1e6}
            rows.append(row if options.gpu else row | judged(timing.output, noise))
    return rows


def kinetic(options) -> list[dict]:
    """Return errors at hidden entries of a measured tensor, at known instants and in the gap."""
    try:
        import tensorly
        from tensorly.datasets import load_kinetic
    except ImportError:
        print("tensorly is not installed", file=sys.stderr)
        return []
    if options.gpu:
        return []
    measured = np.asarray(load_kinetic().tensor, float)[30]
    measured, ticks = measured / measured.std(), [np.linspace(0, 1, n) for n in measured.shape]
    rng = np.random.default_rng(5)
    seconds = np.linspace(1 / 3, 20, 60)
    gap = np.broadcast_to((seconds > 8) & (seconds < 10), measured.shape)
    shown = (rng.random(measured.shape) < 0.1) & ~gap
    everywhere = np.stack([v.ravel() for v in np.meshgrid(*ticks, indexing="ij")], 1)
    coords, y = everywhere[shown.ravel()], measured[shown]
    rows, parts = [], {"hidden": ~shown & ~gap, "gap": gap}
    for rank in (1, 2, 3):

        def fit(rank=rank):
            return functional_tucker(Matern(0.5, 1.0, 1.5), coords, y, rank, core="cp", key=jax.random.key(7))

        timing = harness.clock(fit, repeat=1, warm=True)
        mean, variance = (np.asarray(v).reshape(measured.shape) for v in timing.output.predict(everywhere))
        guesses = {"solvers, CP of functions": (mean, np.sqrt(variance + float(timing.output.noise)), timing)}
        try:
            call = functools.partial(
                tensorly.decomposition.parafac, np.where(shown, measured, 0.0), rank, mask=shown, n_iter_max=500,
                tol=1e-7, random_state=7, init="random",
            )  # fmt: skip
            timing = harness.clock(call, repeat=1)
            guesses["tensorly, parafac"] = (tensorly.cp_to_tensor(timing.output), None, timing)
        except Exception as cause:
            print(f"tensorly: {type(cause).__name__}: {cause}", file=sys.stderr)
        for name, (guess, spread, timing) in guesses.items():
            for part, where in parts.items():
                away = (guess - measured)[where]
                row = {"part": "kinetic", "instance": f"rank {rank}, {part}", "contestant": name}
                row |= {"seconds": timing.seconds, "error": float(np.sqrt(np.mean(away**2)))}
                if spread is not None:
                    row["inside_90"] = float(np.mean(np.abs(away) < 1.645 * spread[where]))
                rows.append(row)
    return rows


PARTS = {
    "gaunt": gaunt,
    "functional-cp-rough": functools.partial(functional, nu=0.5, core="cp", deviation=0.3),
    "functional-cp-smooth": functools.partial(functional, nu=1.5, core="cp", deviation=0.3),
    "functional-cp-precise": functools.partial(functional, nu=0.5, core="cp", deviation=0.1),
    "functional-tucker": functools.partial(functional, nu=0.5, core="tucker", deviation=0.1),
    "large": large,
    "kinetic": kinetic,
}


def is_ours(name: str) -> bool:
    """Whether a contestant is of this package."""
    return name.startswith("solvers, ")


def draw(found: list[dict], record: dict, path) -> None:
    """Draw seconds of running and of compiling against the degree, or as bars for one degree."""
    fig, axes = harness.figure(1, 3, height=3.4)
    all_rows = [r for r in found if r.get("seconds")]
    rows = [r for r in all_rows if r["part"] == "gaunt" and r["dtype"] == "float32"]
    colours = harness.colours([r["contestant"] for r in rows], is_ours)
    for name in dict.fromkeys(r["contestant"] for r in rows):
        own = [r for r in rows if r["contestant"] == name]
        degrees = [int(r["instance"].split()[1].rstrip(",")) for r in own]
        for ax, what in zip(axes, ("best_seconds", "compile_seconds"), strict=False):
            ax.semilogy(degrees, [r[what] for r in own], "o-", label=name, color=colours[name], markersize=4)
    for ax, label in zip(axes, ("seconds a batch", "seconds of the first call"), strict=False):
        ax.set(xlabel="degree L", ylabel=label, title="products on the sphere, 256 a batch")
    if axes[0].lines:
        axes[0].legend(frameon=False, fontsize=6, loc="upper left", bbox_to_anchor=(0, -0.24), ncols=2)
    rows = [r for r in all_rows if r["part"] == "functional" and "plain" not in r["contestant"]]
    names = list(dict.fromkeys(r["contestant"] for r in rows))
    colours = harness.colours(names, is_ours)
    cases = list(dict.fromkeys(r["instance"] for r in rows))
    for name in names:
        own = [r for r in rows if r["contestant"] == name]
        heights = [cases.index(r["instance"]) for r in own]
        axes[2].plot([r["seconds"] for r in own], heights, "o", color=colours[name], label=name)
    axes[2].set(xscale="log", xlabel="seconds", title="functional tensors", ylim=(-0.5, len(cases) - 0.5))
    short = [f"{c.split(',')[0]}\n{', '.join(c.split(', ')[3:])}" for c in cases]
    axes[2].set_yticks(range(len(cases)), short, fontsize=6)
    axes[2].grid(axis="y", color="#e0e0e0", linewidth=0.6)
    axes[2].legend(frameon=False, fontsize=6, loc="upper left", bbox_to_anchor=(0, -0.24))
    fig.tight_layout()
    harness.save_figure(fig, path, record)


def main() -> int:
    """Run the chosen parts, print, save, draw."""
    options = harness.arguments(__doc__)
    name = "tensor_gpu" if options.gpu else "tensor"
    key = ("part", "instance", "contestant", "dtype")
    result = harness.run_parts(options, name, PARTS, key=key, record=harness.machine(*PEERS))
    if result:
        draw(result["rows"], result["machine"], options.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
