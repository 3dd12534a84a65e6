"""Entropic optimal transport: instances from easy to nasty, and colour transfer between two photographs.

`PUBLISHED` holds the eight instances on which solvers are compared. They come as NumPy float64 arrays, the same on
every machine; ``problem.astype(dtype)`` gives them in another precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

Matrix = Any  # a NumPy or JAX array


class TransportProblem(eqx.Module):
    """Minimise ``<cost, P> + epsilon * sum(P * (log(P) - 1))`` over plans with ``P 1 = a`` and ``P' 1 = b``.

    Attributes
    ----------
    cost : Float[Array, "n m"]
        Price of moving a unit of mass from point i to point j.
    a, b : Float[Array, "n"], Float[Array, "m"]
        Masses, each summing to one.
    epsilon : float
        Weight of the entropy, in units of the cost.
    name : str
        What figures and tables call it.
    """

    cost: Matrix
    a: Matrix
    b: Matrix
    epsilon: Any
    name: str = eqx.field(static=True, default="")

    def astype(self, dtype) -> "TransportProblem":
        """Return the problem as NumPy arrays of ``dtype``, the masses rounded to sum to one in it."""
        cost, a, b, epsilon = (np.asarray(x, dtype) for x in (self.cost, self.a, self.b, self.epsilon))
        return TransportProblem(cost, a / a.sum(), b / b.sum(), epsilon[()], self.name)

    def plan(self, f: Matrix, g: Matrix) -> np.ndarray:
        """Evaluate ``exp((f_i + g_j - cost_ij) / epsilon)`` in float64, whatever the dtype of the potentials."""
        f, g, cost = (np.asarray(x, np.float64) for x in (f, g, self.cost))
        with np.errstate(over="ignore", invalid="ignore"):
            return np.exp((f[:, None] + g[None, :] - cost) / float(self.epsilon))

    def marginal_error(self, plan: Matrix) -> float:
        """Return ``sum |plan 1 - a| + sum |plan' 1 - b|`` in float64; infinite where the plan is not finite."""
        plan, a, b = (np.asarray(x, np.float64) for x in (plan, self.a, self.b))
        error = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
        return float(error) if np.isfinite(error) else np.inf


def assignment(n: int = 500, *, eta: float = 1200.0, seed: int = 0) -> TransportProblem:
    """Uniformly random costs, equal masses, ``epsilon = 1 / eta``: the random assignment of the SNS paper."""
    cost = np.random.default_rng(seed).random((n, n))
    return TransportProblem(cost, np.full(n, 1 / n), np.full(n, 1 / n), 1.0 / eta, f"assignment {n}")


def digits(metric: str = "l2", *, eta: float = 1200.0, source: int = 0, target: int = 1) -> TransportProblem:
    """Move one handwritten digit to another on a 28 by 28 grid (needs scikit-learn).

    scikit-learn's 8 by 8 digits, enlarged and smoothed, stand in for the MNIST images of the SNS paper. ``metric`` is
    "l2" (squared Euclidean distance) or "l1" (whose unregularised optimum is not unique); the largest cost is one.
    """
    from sklearn.datasets import load_digits

    if metric not in ("l1", "l2"):
        raise ValueError(f"digits: `metric` must be one of 'l1', 'l2', got {metric!r}")
    data: Any = load_digits()
    images = np.asarray(data["images"])
    a, b = (_strokes(images[i]).ravel() for i in (source, target))
    a, b = (x / x.max() + 0.01 for x in (a, b))
    grid = np.stack(np.meshgrid(np.arange(28), np.arange(28), indexing="ij"), -1).reshape(-1, 2) / 27.0
    difference = grid[:, None] - grid[None]
    cost = (difference**2).sum(-1) if metric == "l2" else np.abs(difference).sum(-1)
    return TransportProblem(cost / cost.max(), a / a.sum(), b / b.sum(), 1.0 / eta, f"digits {metric.upper()}")


def _strokes(image: np.ndarray) -> np.ndarray:
    large = np.kron(image, np.ones((4, 4)))[2:30, 2:30]
    neighbours = [np.roll(large, shift, axis) for axis in (0, 1) for shift in (1, -1)]
    return sum(neighbours, start=large) / 5


def clouds(n: int = 1000, m: int | None = None, *, relative: float = 1e-2, seed: int = 0) -> TransportProblem:
    """Move points of the unit square to two Gaussian heaps in the plane, squared Euclidean distance, equal masses.

    ``epsilon`` is ``relative`` times the mean cost, here and below.
    """
    m = m or n
    random = np.random.default_rng(seed)
    x = random.random((n, 2))
    y = np.concatenate([random.normal(0.2, 0.1, (m // 2, 2)), random.normal(0.8, 0.15, (m - m // 2, 2))])
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    return TransportProblem(cost, a, b, relative * cost.mean(), f"clouds {n}, {relative:.0e}")


def mixtures(n: int = 1000, *, relative: float = 1e-3) -> TransportProblem:
    """Move one Gaussian mixture density to another on a grid of [0, 1]; the masses span six decades."""
    x = np.linspace(0, 1, n)

    def bump(mean, width):
        return np.exp(-0.5 * ((x - mean) / width) ** 2) / width

    a = 0.5 * bump(0.2, 0.05) + 0.5 * bump(0.7, 0.1) + 1e-6
    b = 0.3 * bump(0.3, 0.03) + 0.3 * bump(0.5, 0.08) + 0.4 * bump(0.9, 0.04) + 1e-6
    cost = (x[:, None] - x[None]) ** 2
    return TransportProblem(cost, a / a.sum(), b / b.sum(), relative * cost.mean(), f"mixtures {n}, {relative:.0e}")


PUBLISHED: dict[str, Callable[[], TransportProblem]] = {
    "assignment": assignment,
    "digits_l2": partial(digits, "l2"),
    "digits_l1": partial(digits, "l1"),
    "mixtures_1e-2": partial(mixtures, relative=1e-2),
    "mixtures_1e-3": partial(mixtures, relative=1e-3),
    "clouds_1e-2": partial(clouds, relative=1e-2),
    "clouds_1e-3": partial(clouds, relative=1e-3),
    "clouds_1e-4": partial(clouds, relative=1e-4),
}
"""The eight instances of the benchmark; the first three follow the experiments of the SNS paper."""


def device_clouds(
    n: int, m: int | None = None, *, relative: float = 1e-3, seed: int = 0, kind: str = "clouds", dtype=None
) -> TransportProblem:
    """Make an instance of any size with random masses on the default device, as JAX arrays of ``dtype``.

    ``kind`` is "clouds" (points of the unit square to one Gaussian heap, squared distance over its mean), "random"
    (uniform costs, of mean about one half), or one of the hard ones, squared distances over their mean too: "rings" (a
    noisy circle to a larger one), "clusters" (twenty tight heaps to twenty others), "sixteen dimensions" (a Gaussian to
    another one; at ``relative=1e-3`` most points have one partner), "heavy tails" (Student's t with two degrees of
    freedom). The random numbers, hence the instance, depend on the dtype.
    """
    make = partial(_device_clouds, n=n, m=m or n, kind=kind, dtype=dtype or jnp.result_type(float))
    cost, a, b = jax.jit(make)(jax.random.key(seed))
    return TransportProblem(cost, a, b, relative, f"{kind} {n}, {relative:.0e}")


def device_batch(count: int, n: int, *, relative: float = 1e-3, seed: int = 0, dtype=None) -> TransportProblem:
    """Stack ``count`` independent `device_clouds` of ``n`` points along a leading axis."""
    make = partial(_device_clouds, n=n, m=n, kind="clouds", dtype=dtype or jnp.result_type(float))
    cost, a, b = jax.jit(jax.vmap(make))(jax.random.split(jax.random.key(seed), count))
    return TransportProblem(cost, a, b, relative, f"{count} clouds of {n}, {relative:.0e}")


def _device_clouds(key, *, n: int, m: int, kind: str, dtype):
    x_key, y_key, a_key, b_key = jax.random.split(key, 4)
    if kind == "random":
        cost = jax.random.uniform(x_key, (n, m), dtype)
    elif kind in _POINTS:
        x, y = (points(k, size, dtype) for points, k, size in zip(_POINTS[kind], (x_key, y_key), (n, m), strict=True))
        squares = jnp.zeros((n, m), dtype)
        for d in range(x.shape[1]):
            squares = squares + (x[:, None, d] - y[None, :, d]) ** 2
        cost = squares / squares.mean()
    else:
        raise ValueError(f"device_clouds: `kind` must be one of {[*_POINTS, 'random']}, got {kind!r}")
    a = jax.random.uniform(a_key, (n,), dtype) + 0.1
    b = jax.random.uniform(b_key, (m,), dtype) + 0.1
    return cost, a / a.sum(), b / b.sum()


def _gaussian(key, n, dtype, *, dimension, centre, width):
    return centre + width * jax.random.normal(key, (n, dimension), dtype)


def _circle(key, n, dtype, *, radius):
    angle_key, noise_key = jax.random.split(key)
    angle = 2 * jnp.pi * jax.random.uniform(angle_key, (n,), dtype)
    out = radius * (1 + 0.02 * jax.random.normal(noise_key, (n,), dtype))
    return out[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)


def _heaps(key, n, dtype, *, heaps=20, width=0.01):
    centre_key, which_key, noise_key = jax.random.split(key, 3)
    centres = jax.random.uniform(centre_key, (heaps, 2), dtype)
    which = jax.random.randint(which_key, (n,), 0, heaps)
    return centres[which] + width * jax.random.normal(noise_key, (n, 2), dtype)


def _tails(key, n, dtype, *, centre):
    return centre + jax.random.t(key, 2.0, (n, 2), dtype)


_POINTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "clouds": (
        lambda key, n, dtype: jax.random.uniform(key, (n, 2), dtype),
        lambda key, n, dtype: jax.random.normal(key, (n, 2), dtype) * 0.15 + 0.5,
    ),
    "rings": (partial(_circle, radius=1.0), partial(_circle, radius=1.5)),
    "clusters": (_heaps, _heaps),
    "sixteen dimensions": (
        partial(_gaussian, dimension=16, centre=0.0, width=1.0),
        partial(_gaussian, dimension=16, centre=0.5, width=1.2),
    ),
    "heavy tails": (partial(_tails, centre=0.0), partial(_tails, centre=1.0)),
}
HARD = ("rings", "clusters", "sixteen dimensions", "heavy tails")
"""Kinds of `device_clouds` at which methods that are fast on clouds were found to be slow."""


class ColourTransfer(eqx.Module):
    """Give one photograph the colours of another; see `colour_transfer`.

    Attributes
    ----------
    problem : TransportProblem
        Between the two palettes: squared distance in CIELAB over its mean, masses the shares of pixels.
    source, target : Float[Array, "height width 3"]
        The photographs, sRGB in [0, 1].
    source_palette, target_palette : Float[Array, "n 3"], Float[Array, "m 3"]
        Their colours in CIELAB.
    """

    problem: TransportProblem
    source: np.ndarray
    target: np.ndarray
    source_palette: np.ndarray
    target_palette: np.ndarray

    def moved(self, plan: Matrix) -> np.ndarray:
        """Return where ``plan`` sends the source palette on average, in CIELAB: the barycentric map."""
        plan = np.asarray(plan, np.float64)
        return plan @ self.target_palette / np.maximum(plan.sum(1), np.finfo(float).tiny)[:, None]

    def recolour(self, plan: Matrix, *, neighbours: int = 12, radius: int = 10) -> np.ndarray:
        """Return the source photograph with its colours moved by ``plan``, sRGB in [0, 1] (needs SciPy).

        Each pixel moves by the weighted mean shift of the palette colours nearest to its own. The field of shifts is
        then smoothed over ``radius`` pixels, except across edges of the source's lightness, so that clear skies stay
        clear and details finer than the palette survive; 0 leaves it as it is.
        """
        from scipy.spatial import KDTree

        lab = to_lab(self.source)
        pixels = lab.reshape(-1, 3)
        palette_shift = self.moved(plan) - self.source_palette
        distance, near = KDTree(self.source_palette).query(pixels, k=neighbours, workers=-1)
        weight = np.exp(-((distance / (distance[:, neighbours // 2, None] + 1.0)) ** 2))
        weight /= weight.sum(1, keepdims=True)
        shift = np.einsum("pk,pkc->pc", weight, palette_shift[near]).reshape(lab.shape)
        if radius:
            shift = _smooth_within_edges(shift, lab[..., :1], radius)
        return from_lab(lab + shift)


def _smooth_within_edges(field: np.ndarray, guide: np.ndarray, radius: int, contrast: float = 1.0) -> np.ndarray:
    """Smooth an image's field by the guided filter: an affine function of the guide in every window, averaged."""
    from scipy.ndimage import uniform_filter

    def mean(x):
        return uniform_filter(x, size=2 * radius + 1, mode="nearest", axes=(0, 1))

    guide_mean, field_mean = mean(guide), mean(field)
    slope = (mean(guide * field) - guide_mean * field_mean) / (mean(guide**2) - guide_mean**2 + contrast**2)
    return mean(slope) * guide + mean(field_mean - slope * guide_mean)


def colour_transfer(colours: int = 2048, *, relative: float = 1e-3, reverse: bool = False) -> ColourTransfer:
    """Transport the palette of scikit-learn's temple photograph to that of its flower (needs scikit-learn, Pillow).

    ``colours`` is the size of each palette; ``reverse`` swaps the photographs.
    """
    from sklearn.datasets import load_sample_image

    names = ("flower.jpg", "china.jpg") if reverse else ("china.jpg", "flower.jpg")
    source, target = (load_sample_image(name).astype(np.float64) / 255 for name in names)
    (x, a), (y, b) = (palette(to_lab(image).reshape(-1, 3), colours) for image in (source, target))
    cost = np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T, 0.0)
    name = f"colour transfer {colours}, {relative:.0e}"
    return ColourTransfer(TransportProblem(cost / cost.mean(), a, b, relative, name), source, target, x, y)


def palette(pixels: np.ndarray, colours: int) -> tuple[np.ndarray, np.ndarray]:
    """Summarise ``pixels`` (N, 3) by ``colours`` mean colours and their shares, by cutting boxes at the median.

    Each cut halves a box's pixels along the channel of largest spread, so that all boxes hold nearly equal shares.
    """
    means, shares = [], []
    boxes = [(pixels, colours)]
    while boxes:
        box, parts = boxes.pop()
        if parts == 1:
            means.append(box.mean(0))
            shares.append(len(box) / len(pixels))
            continue
        left = parts // 2
        middle = len(box) * left // parts
        order = np.argpartition(box[:, np.argmax(box.std(0))], middle)
        boxes += [(box[order[:middle]], left), (box[order[middle:]], parts - left)]
    return np.array(means), np.array(shares)


_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _XYZ.sum(1)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB in [0, 1] to CIELAB, where equal distances look about equally large."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    t = linear @ _XYZ.T / _WHITE
    x, y, z = np.moveaxis(np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def from_lab(lab: np.ndarray) -> np.ndarray:
    """Convert CIELAB to sRGB, clipped to [0, 1]."""
    light, red, yellow = np.moveaxis(lab, -1, 0)
    y = (light + 16) / 116
    t = np.stack([y + red / 500, y, y - yellow / 200], -1)
    linear = np.where(t > 6 / 29, t**3, 3 * (6 / 29) ** 2 * (t - 4 / 29)) * _WHITE @ np.linalg.inv(_XYZ).T
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
