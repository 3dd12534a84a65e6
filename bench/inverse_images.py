"""Inverse problems on images: the projection against others, the cost of a step, total variation, and a tomogram.

python bench/inverse_images.py [--quick] [--gpu] [--only radon,step,variation,tomogram] [--out FOLDER]

Radon: adjointness in double precision, and scikit-image's projections of a smooth image, against exact integrals. Step:
one of DDS beside what it must pay, one call of the network and as many products with A'A as conjugate gradient steps.
Variation: ADMM with total variation at 256 x 256, 32 views, beside scico's on our operator, with the same penalty
and as many iterations. Tomogram: 128 x 128 (with ``--gpu`` 256 x 256) from 32 views with one per cent of noise, a
phantom like those that the priors were trained on and the head of Shepp and Logan, which they never saw; priors from
`inverse_models.py`, all settings by formula from the noise but the weight of total variation, the best of four on
another phantom. With ``--gpu`` that weight is as found at 64 x 64, and second order is among them.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

import harness  # noqa: E402
import inverse_models  # noqa: E402

from solvers import inverse  # noqa: E402
from solvers.inverse import DDS, Differences, GroupL1, Radon, SecondOrder, admm, posterior_sample  # noqa: E402
from solvers.problems.inverse import phantom, random_ellipses  # noqa: E402

VIEWS, KEY = 32, ("part", "instance", "contestant")


def scanner(size: int, dtype=jnp.float32, views: int = VIEWS) -> Radon:
    """Return the projection along so many views."""
    return Radon(jnp.linspace(0, jnp.pi, views, endpoint=False, dtype=dtype), size)


def radon(options) -> list[dict]:
    """Return what adjointness misses, and the difference from scikit-image."""
    rows = []
    for size, views in ((64, 24), (256, 32), (255, 180)):
        A = scanner(size, jnp.float64, views)
        keys = jax.random.split(jax.random.key(7))
        x, y = jax.random.normal(keys[0], A.domain.shape), jax.random.normal(keys[1], A.codomain.shape)
        there, back = jax.jit(lambda x, y, A=A: (A.mv(x), A.transpose_mv(y)))(x, y)
        wrong = jnp.abs(jnp.vdot(there, y) - jnp.vdot(x, back)) / (jnp.linalg.norm(there) * jnp.linalg.norm(y))
        grid = (jnp.arange(size) - size // 2) / size
        smooth = jnp.exp(-40 * ((grid[:, None] - 0.1) ** 2 + 2 * (grid[None, :] + 0.05) ** 2))
        smooth = smooth + 0.5 * jnp.exp(-90 * ((grid[:, None] + 0.2) ** 2 + (grid[None, :] - 0.15) ** 2))
        program = harness.compiled(lambda x, A=A: A.mv(x), smooth)
        timing = harness.clock(lambda p=program, x=smooth: p(x), repeat=5, warm=True)
        row = {"part": "radon", "instance": f"{size} x {size}, {views} views", "contestant": "solvers"}
        row |= {"adjoint_misses": float(wrong), "seconds": timing.seconds}
        row |= {"compile_seconds": program.first_call_seconds}
        rows.append(row)
        try:
            from skimage.transform import radon as other
        except ImportError:
            print("scikit-image is not installed", file=sys.stderr)
            continue
        image, angles = np.array(smooth), np.rad2deg(np.array(A.angles))
        peer = harness.clock(lambda i=image, a=angles: other(i, a, circle=True), repeat=3)
        ours, theirs = np.asarray(timing.output), peer.output.T
        row["difference"] = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        truth = np.stack([_exact(grid, float(a), size) for a in A.angles])
        row["error"] = float(np.linalg.norm(ours - truth) / np.linalg.norm(truth))
        error = float(np.linalg.norm(theirs - truth) / np.linalg.norm(truth))
        own = {"part": "radon", "instance": row["instance"], "contestant": "scikit-image"}
        rows.append(own | {"seconds": peer.seconds, "error": error})
    return rows


def _exact(grid, angle: float, size: int) -> np.ndarray:
    """Return exact line integrals of the two Gaussians above."""
    s, total = np.asarray(grid), 0.0
    for weight, p, q, rows, cols in ((1.0, 40, 80, 0.1, -0.05), (0.5, 90, 90, -0.2, 0.15)):
        # on the ray x cos a - y sin a = s with rows y = t cos a - s sin a, columns x = s cos a + t sin a
        c, n = np.cos(angle), np.sin(angle)
        s0 = cols * c - rows * n
        u = p * c**2 + q * n**2  # along the ray
        across = p * q / u
        total = total + weight * size * np.sqrt(np.pi / u) * np.exp(-across * (s - s0) ** 2)
    return total


def step(options) -> list[dict]:
    """Return seconds of a DDS step, and of a network call with as many products with A'A."""
    size, steps = (64, 5) if options.quick else (256, 20 if options.gpu else 4)
    A, schedule = scanner(size), inverse_models.PHANTOMS
    model = inverse_models.Denoiser(jax.tree.map(lambda v: v.astype(jnp.float32),
                                                 inverse_models.UNet(jax.random.key(3)))).model(schedule)  # fmt: skip
    y, key = A.mv(phantom(size, jnp.float32)), jax.random.key(5)

    def whole(y, key, M):
        guidance = DDS(gamma=0.01, cg_steps=M)
        return posterior_sample(model, schedule, A, y, key, noise=1.0, guidance=guidance, steps=steps, kind="denoiser")

    def parts(y, key, M):
        def one(x, t):
            x = model(x, t)
            return jax.lax.fori_loop(0, M, lambda _, x: 1e-4 * A.normal_mv(x), x), None

        times = jnp.linspace(1, 0.1, steps, dtype="float32")
        return jax.lax.scan(one, jnp.zeros((size, size), jnp.float32), times)[0]

    some, rows = jnp.int32(5), []
    functions = {"DDS": whole, "network and pairs": parts}
    programs = {name: harness.compiled(f, y, key, some) for name, f in functions.items()}
    for M in (5, 10):
        calls = {name: functools.partial(program, y, key, jnp.int32(M)) for name, program in programs.items()}
        for call in calls.values():
            jax.block_until_ready(call())
        times = harness.alternate(calls, repeat=5 if options.gpu else 3)
        for name, timing in times.items():
            row = {"part": "step", "instance": f"{size} x {size}, {VIEWS} views, M {M}", "contestant": name}
            row |= {
                "seconds_a_step": timing.seconds / steps,
                "ratio": timing.seconds / times["network and pairs"].seconds,
            }
            rows.append(row | {"compile_seconds": programs[name].first_call_seconds})
            print(rows[-1], flush=True)
    return rows


def measured(image, seed: int, share: float = 0.01):
    """Return scanner, noisy sinogram and the noise's deviation."""
    A = scanner(image.shape[0], image.dtype)
    clean = jax.jit(lambda x: A.mv(x))(image)
    noise = share * float(jnp.max(clean))
    return A, clean + noise * jax.random.normal(jax.random.key(seed), clean.shape, image.dtype), noise


def variation(options) -> list[dict]:
    """Return seconds of as many iterations of ADMM, ours and scico's."""
    size, iterations, cg_steps = (64, 10, 10) if options.quick else (256, 100 if options.gpu else 10, 10)
    A, y, noise = measured(phantom(size, jnp.float32), 17)
    weight, penalty = 2.0 * noise, 30.0
    D = Differences(A.domain)

    def objective(x):
        rest, d = A.mv(x) - y, D.mv(x)
        return float(0.5 * jnp.sum(rest**2) + weight * jnp.sum(jnp.sqrt(jnp.sum(d**2, 0))))

    def ours(y):
        return admm(A, y, GroupL1(weight, axis=0), analysis=D, penalty=penalty, adaptive=False, cg_steps=cg_steps,
                    tol=0.0, max_steps=iterations)  # fmt: skip

    program = harness.compiled(ours, y)
    timing = harness.clock(lambda: program(y), repeat=3, budget=20, warm=options.gpu)
    instance = f"{size} x {size}, {VIEWS} views, {iterations} iterations"
    common = {"part": "variation", "instance": instance}
    rows = [common | {
        "contestant": "solvers", "seconds": timing.seconds, "compile_seconds": program.first_call_seconds,
        "products": int(timing.output.linear_steps), "iterations": int(timing.output.num_steps),
        "objective": objective(timing.output.value),
    }]  # fmt: skip
    print(rows[-1], flush=True)
    try:
        from scico import functional, linop, loss
        from scico.optimize.admm import ADMM, LinearSubproblemSolver
    except ImportError:
        print("scico is not installed", file=sys.stderr)
        return rows

    def theirs(tol):
        operator = linop.LinearOperator(
            A.domain.shape, A.codomain.shape, eval_fn=lambda x: A.mv(x), adj_fn=lambda y: A.transpose_mv(y),
            input_dtype=np.float32, output_dtype=np.float32, jit=True,
        )  # fmt: skip
        solver = ADMM(
            f=loss.SquaredL2Loss(y=y, A=operator), g_list=[weight * functional.L21Norm()],
            C_list=[linop.FiniteDifference(input_shape=A.domain.shape, append=0)], rho_list=[penalty],
            x0=jnp.zeros(A.domain.shape, jnp.float32), maxiter=iterations,
            subproblem_solver=LinearSubproblemSolver(cg_kwargs={"tol": tol, "maxiter": cg_steps}),
        )  # fmt: skip
        return solver.solve()

    for tol in (1e-3, 1e-5):
        peer = harness.clock(functools.partial(theirs, tol), repeat=3, budget=20, warm=True)
        rows.append(common | {
            "contestant": f"scico, inner tolerance {tol}", "seconds": peer.seconds, "iterations": iterations,
            "objective": objective(peer.output), "ratio": peer.seconds / timing.seconds,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def reconstructions(A: Radon, share: float, gpu: bool):
    """Return the methods: of data, their noise's deviation and a key; the image and what they say of it.

    `share` is as found by `tuned`.
    """
    denoiser, network = (inverse_models.load(name) for name in ("phantoms", "prox"))
    model, schedule = denoiser.model(inverse_models.PHANTOMS), inverse_models.PHANTOMS
    weight = lambda noise: inverse_models.NOISE**2 / noise**2  # noqa: E731

    def guided(make):
        def sampled(y, noise, key):
            given = {"noise": noise, "steps": 50, "kind": "denoiser", "guidance": make(noise), "details": True}
            found = posterior_sample(model, schedule, A, y, key, **given)
            return found.value, {"misfit": found.misfit, "doubted": found.doubted}

        return sampled

    def total_variation(y, noise, key):
        found = admm(A, y, GroupL1(share * noise, axis=0), analysis=Differences(A.domain), tol=1e-3, max_steps=1000)
        return found.value, {"converged": found.converged}

    def learned(y, noise, key):
        # the network is the proximal map of -log p times its noise squared: a penalty of noise^2 / that
        found = admm(A, y, network, penalty=1 / weight(noise), tol=1e-3, max_steps=100)
        return found.value, {"converged": found.converged}

    methods = {
        "filtered back-projection": lambda y, noise, key: (inverse.filtered_back_projection(A, y), {}),
        "admm, total variation": total_variation,
        "admm, learned proximal network": learned,
        "dds": guided(lambda noise: DDS(gamma=weight(noise), cg_steps=10)),
        "dds, total variation": guided(
            lambda noise: DDS(total_variation=share * noise, penalty=1 / weight(noise), cg_steps=10)),
    }  # fmt: skip
    if gpu:
        methods["second order"] = guided(lambda noise: SecondOrder(cg_steps=10))
    return methods


def tuned(size: int) -> float:
    """Return the weight of total variation, in units of the noise, that is best on a phantom of its own."""
    truth = random_ellipses(jax.random.key(23), size, dtype=jnp.float32)
    A, y, noise = measured(truth, 29)

    @jax.jit
    def error(weight):
        x = admm(A, y, GroupL1(weight, axis=0), analysis=Differences(A.domain), tol=1e-3, max_steps=1000).value
        return jnp.linalg.norm(x - truth)

    choices = (0.3, 1.0, 3.0, 10.0)
    return choices[int(np.argmin([error(jnp.float32(c * noise)) for c in choices]))]


def tomogram(options) -> list[dict]:
    """Return errors and seconds of all methods on two images, and keep the pictures."""
    size = 64 if options.quick else 256 if options.gpu else 128
    images = {"like the training": random_ellipses(jax.random.key(31), size, dtype=jnp.float32),
              "Shepp and Logan": phantom(size, jnp.float32)}  # fmt: skip
    share = 3.0 if options.gpu else tuned(64)
    rows, pictures = [], {name: {"truth": np.asarray(truth)} for name, truth in images.items()}
    for method, call in reconstructions(scanner(size), share, options.gpu).items():
        program = None
        for name, truth in images.items():
            row = {"part": "tomogram", "instance": f"{size} x {size}, {VIEWS} views, {name}", "contestant": method}
            _, y, noise = measured(truth, 37)
            given = (y, jnp.float32(noise), jax.random.key(41))
            program = harness.compiled(call, *given) if program is None else program
            timing = harness.clock(lambda p=program, g=given: p(*g), repeat=3, budget=5, warm=options.gpu)
            found, says = timing.output
            found, says = np.asarray(found), {k: np.asarray(v).item() for k, v in says.items()}
            mean_square = float(np.mean((found - np.asarray(truth)) ** 2))
            row |= {"seconds": timing.seconds, "compile_seconds": program.first_call_seconds}
            row |= {"error": float(np.linalg.norm(found - truth) / np.linalg.norm(truth)),
                    "psnr": 10 * np.log10(1 / mean_square), "weight": share, **says}  # fmt: skip
            pictures[name][f"{method}: {row['error']:.3f}"] = found
            rows.append(row)
            print({k: v for k, v in row.items() if k != "part"}, flush=True)
        stem = "inverse_images_gpu" if options.gpu else "inverse_images"
        record = harness.machine("scico", "scikit-image", "optax", "equinox")
        harness.save(options.out / f"{stem}.json", rows, key=KEY, record=record)
    show(pictures, options.out / ("inverse_tomogram_gpu.png" if options.gpu else "inverse_tomogram.png"))
    return rows


def show(pictures, path) -> None:
    """Draw the images of each instance in a row."""
    columns = max(len(row) for row in pictures.values())
    fig, axes = harness.figure(len(pictures), columns, width=2.3, height=2.6)
    for k, (name, row) in enumerate(pictures.items()):
        for j, (title, image) in enumerate(row.items()):
            ax = axes[k * columns + j]
            ax.imshow(image, cmap="gray", vmin=0, vmax=0.8)
            ax.set_title(title, fontsize=6.5)
            ax.set(xticks=[], yticks=[], ylabel=name if j == 0 else "")
    for ax in axes:
        if not ax.images:
            ax.set_axis_off()
    fig.tight_layout()
    harness.save_figure(fig, path, harness.machine("optax"))


PARTS = {"radon": radon, "step": step, "variation": variation, "tomogram": tomogram}


def main() -> int:
    """Run the chosen parts, print and save."""
    options = harness.arguments(__doc__)
    name = "inverse_images_gpu" if options.gpu else "inverse_images"
    record = harness.machine("scico", "scikit-image", "optax", "equinox")
    harness.run_parts(options, name, PARTS, key=KEY, record=record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
