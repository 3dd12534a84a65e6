"""Forward operators: exact adjoints, against NumPy, analytic projections and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from solvers import inverse
from solvers.core.total_variation import Differences, TotalVariation
from solvers.core.vectors import inner
from solvers.problems import inverse as problems

from ..conftest import FLOAT, needs_x64

SIZE = 24
TOL = 1e-12 if FLOAT == "float64" else 2e-5


def images(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), FLOAT)


def angles(count):
    return jnp.linspace(0, jnp.pi, count, endpoint=False, dtype=FLOAT)


def operators():
    rng = np.random.default_rng(31)
    kernel = jnp.asarray(rng.random((5, 4)), FLOAT)
    image = jax.ShapeDtypeStruct((SIZE, SIZE), FLOAT)
    mask = jnp.asarray(rng.random((SIZE, SIZE)) < 0.4, FLOAT)
    mirrored = jnp.maximum(mask, jnp.roll(mask[::-1, ::-1], (1, 1), (0, 1)))  # both of each conjugate pair
    blur = inverse.Blur(kernel, (SIZE, SIZE))
    return {
        "mask": inverse.Mask(mask),
        "blur": blur,
        "blur zero": inverse.Blur(kernel, (SIZE, SIZE), boundary="zero"),
        "downsample": inverse.Downsample((3, 2), image),
        "fourier": inverse.FourierSampling(mirrored),
        "radon": inverse.Radon(angles(9), SIZE),
        "radon round": inverse.Radon(angles(24), 64),  # rays through the middles of pixels
        "radon wide": inverse.Radon(angles(7) + 0.3, SIZE, detectors=37),
        "differences": Differences(image),
        "composed": inverse.Downsample((2, 2), image) @ blur,
    }


OPERATORS = operators()


@jax.jit
def apply(A, x):
    return A.mv(x)


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoints_are_exact(name, rng):
    """``<A x, y> = <x, A'y>`` relative to ``|A x| |y|``, and A' is what transposing the program gives."""
    A = OPERATORS[name]
    x = images(rng, *A.domain.shape)
    y = images(rng, *A.codomain.shape)
    there, back = apply(A, x), apply(A.T, y)
    size = jnp.sqrt(inner(there, there) * inner(y, y))
    assert abs(inner(there, y) - inner(x, back)) <= TOL * size
    transposed = jax.linear_transpose(A.mv, A.domain)(y)[0]
    np.testing.assert_allclose(back, transposed, atol=TOL * np.abs(transposed).max())
    assert there.dtype == back.dtype == FLOAT


def test_blur_is_a_convolution(rng):
    x, kernel = rng.standard_normal((SIZE, SIZE)), rng.random((5, 4))
    flipped = kernel[::-1, ::-1]
    for boundary, mode in (("periodic", "wrap"), ("zero", "constant")):
        expected = ndimage.correlate(x, flipped, mode=mode, origin=(0, -1))
        A = inverse.Blur(jnp.asarray(kernel, FLOAT), (SIZE, SIZE), boundary=boundary)
        np.testing.assert_allclose(A(jnp.asarray(x, FLOAT)), expected, atol=10 * TOL)


def test_downsampling_averages(rng):
    x = images(rng, SIZE, SIZE)
    y = OPERATORS["downsample"](x)
    np.testing.assert_allclose(y[1, 2], jnp.mean(x[3:6, 4:6]), atol=TOL)


def test_fourier_samples_are_orthonormal(rng):
    A = inverse.FourierSampling(jnp.ones((SIZE, SIZE), FLOAT))
    x = images(rng, SIZE, SIZE)
    np.testing.assert_allclose(A.normal_mv(x), x, atol=10 * TOL)
    masked = OPERATORS["fourier"]
    np.testing.assert_allclose(A(x)[..., 0], np.fft.fft2(x, norm="ortho").real, atol=10 * TOL)
    np.testing.assert_allclose(masked.normal_mv(masked.normal_mv(x)), masked.normal_mv(x), atol=10 * TOL)


@pytest.mark.long
def test_radon_of_a_disc_is_its_chords():
    """Chords of length ``2 sqrt(r^2 - s^2)``, whatever the angle; the discretised disc is off by less than a pixel."""
    n, radius = 128, 40.0
    x = jnp.arange(n, dtype=FLOAT) - n // 2
    fine = (jnp.arange(8, dtype=FLOAT) - 3.5) / 8  # subpixels
    xs = (x[:, None] + fine[None, :]).reshape(-1)
    inside = (xs[:, None] ** 2 + xs[None, :] ** 2 < radius**2).astype(FLOAT)
    disc = inside.reshape(n, 8, n, 8).mean((1, 3))
    chords = 2 * jnp.sqrt(jnp.maximum(radius**2 - x**2, 0))
    y = inverse.Radon(angles(12) + 0.1, n)(disc)
    clear = jnp.abs(jnp.abs(x) - radius) > 2
    wrong = jnp.abs(y - chords[None])
    assert jnp.max(wrong[:, clear]) < 0.5
    inner = jnp.abs(x) < radius - 2
    assert jnp.linalg.norm(wrong[:, inner]) < 2e-3 * jnp.linalg.norm(jnp.tile(chords[inner], (12, 1)))
    assert jnp.max(wrong) < (2 * radius) ** 0.5  # a ray half a pixel inside the rim, where chords rise like a root
    np.testing.assert_allclose(jnp.sum(y, 1), jnp.pi * radius**2, rtol=2e-4)


def test_radon_keeps_the_mass_at_right_angles(rng):
    """At 0 and 90 degrees rays run along the pixels: sums of columns and rows, exactly."""
    A = inverse.Radon(jnp.asarray([0.0, jnp.pi / 2], FLOAT), SIZE)
    x = images(rng, SIZE, SIZE)
    y = A(x)
    np.testing.assert_allclose(y[0], x.sum(0), atol=20 * TOL)
    rows = x.sum(1)  # ray s is row n // 2 - s: s = n // 2 lies outside the array's other end
    np.testing.assert_allclose(y[1, 1:], rows[::-1][: SIZE - 1], atol=20 * TOL)


@needs_x64
def test_radon_agrees_with_scikit_image():
    """Two discretisations of one integral differ by their interpolation: 5e-4 on a smooth image."""
    transform = pytest.importorskip("skimage.transform")
    n, count = 128, 20
    x, y = np.meshgrid(*(np.arange(n) - n // 2,) * 2, indexing="ij")
    image = jnp.asarray(np.exp(-((x - 9) ** 2 + (y + 14) ** 2) / 200) + 2 * np.exp(-((x + 20) ** 2 + y**2) / 50))
    theta = np.arange(count) * 180 / count
    theirs = transform.radon(np.array(image), theta, circle=True).T
    ours = inverse.Radon(jnp.deg2rad(jnp.asarray(theta)), n)(image)
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


@pytest.mark.long
def test_filtered_back_projection_recovers_the_scale():
    n = 64
    A = inverse.Radon(angles(100), n)
    image = problems.phantom(n, FLOAT)
    found = inverse.filtered_back_projection(A, A(image))
    assert np.linalg.norm(found - image) < 0.34 * np.linalg.norm(image)  # scikit-image's iradon: 0.344, edges mostly
    np.testing.assert_allclose(found[n // 2 - 4 : n // 2 + 4, n // 2 - 4 : n // 2 + 4].mean(),
                               image[n // 2 - 4 : n // 2 + 4, n // 2 - 4 : n // 2 + 4].mean(), atol=0.02)  # fmt: skip


def test_prox_quadratic_is_the_closed_form(rng):
    """At full steps the dense answer; from exact data the projection on the solutions."""
    A = OPERATORS["composed"]
    M = np.asarray(A.matrix(), float)
    x0, y = images(rng, SIZE, SIZE), images(rng, *A.codomain.shape)
    gamma = 0.7
    dense = np.linalg.solve(np.eye(M.shape[1]) + gamma * M.T @ M, np.ravel(x0) + gamma * M.T @ np.ravel(y))
    found = inverse.prox_quadratic(A, y, gamma, x0, steps=80, rtol=1e-13)
    np.testing.assert_allclose(found.x.ravel(), dense, atol=1e-10 if FLOAT == "float64" else 1e-4)
    orthonormal = OPERATORS["fourier"]
    seen = orthonormal(images(rng, SIZE, SIZE))
    projected = inverse.prox_quadratic(orthonormal, seen, None, x0, steps=1).x
    np.testing.assert_allclose(orthonormal(projected), seen, atol=20 * TOL)
    np.testing.assert_allclose(projected, x0 + orthonormal.transpose_mv(seen - orthonormal(x0)), atol=20 * TOL)


@needs_x64
@pytest.mark.long
def test_few_steps_stay_in_the_krylov_space(rng):
    """M steps from x0 stay in ``x0 + Krylov_M(A'A, A'(y - A x0))``, to 1e-12."""
    A = OPERATORS["radon"]
    x0, y = images(rng, SIZE, SIZE), images(rng, *A.codomain.shape)
    for gamma in (2.0, None):
        moved = (inverse.prox_quadratic(A, y, gamma, x0, steps=4).x - x0).ravel()
        basis = [A.transpose_mv(y - A(x0))]
        for _ in range(3):
            basis.append(A.normal_mv(basis[-1] / jnp.linalg.norm(basis[-1])))
        q = np.linalg.qr(np.stack([b.ravel() for b in basis], 1))[0]
        assert np.linalg.norm(moved - q @ (q.T @ moved)) <= 1e-12 * np.linalg.norm(moved)


@pytest.mark.parametrize("shape", [(30,), (9, 8), (5, 4, 6)])
def test_total_variation_is_certified(shape, rng):
    """The bound holds: against ten thousand times as exact an answer, in 1 to 3 dimensions."""
    v = images(rng, *shape)
    loose = TotalVariation(0.3, ndim=len(shape), tol=1e-2).denoise(v)
    tight = TotalVariation(0.3, ndim=len(shape), tol=1e-6 if FLOAT == "float64" else 3e-4, max_steps=20_000).denoise(v)
    assert loose.converged
    assert tight.converged
    assert jnp.linalg.norm(loose.value - tight.value) <= (loose.error + tight.error) * jnp.linalg.norm(v)
    slack = 1.01 if FLOAT == "float64" else 1.5  # the gap is a difference of sums that rounding knows to 1e-4
    again = TotalVariation(0.3, ndim=len(shape), tol=tight.error * slack).denoise(v, dual=tight.dual)
    assert again.num_steps == 0


def test_total_variation_in_one_dimension_has_its_known_answer():
    """A step of height h over halves of n samples moves by ``level / n`` on each side."""
    v = jnp.where(jnp.arange(20) < 10, 0, 1).astype(FLOAT)
    x = TotalVariation(0.5, ndim=1, tol=1e-6).denoise(v).value
    np.testing.assert_allclose(x, jnp.where(v == 0, 0.05, 0.95), atol=1e-4)
    large = TotalVariation(100.0, ndim=1, tol=1e-5).denoise(v).value
    np.testing.assert_allclose(large, 0.5, atol=1e-3)


@needs_x64
@pytest.mark.long
def test_total_variation_is_differentiable(rng):
    """Reverse and forward, in data and weight, against differences of tight solves; NaN where not converged."""
    v, c = images(rng, 6, 5), images(rng, 6, 5)

    @jax.jit
    def observed(v, weight):
        return jnp.sum(c * TotalVariation(weight, tol=1e-7, max_steps=50_000).denoise(v).value)

    direction = images(rng, 6, 5)
    by_v, by_weight = jax.jit(jax.grad(observed, (0, 1)))(v, 0.3)
    h = 1e-4
    slope = (observed(v + h * direction, 0.3) - observed(v - h * direction, 0.3)) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(by_v, direction), slope, rtol=1e-4)
    np.testing.assert_allclose(by_weight, (observed(v, 0.3 + h) - observed(v, 0.3 - h)) / (2 * h), rtol=1e-4)
    stopped = jax.grad(lambda v: jnp.sum(TotalVariation(0.3, max_steps=1).denoise(v).value))(v)
    assert np.all(np.isnan(stopped))


@pytest.mark.parametrize(
    "make",
    [
        lambda: inverse.Blur(jnp.ones((30, 3)), (SIZE, SIZE)),
        lambda: inverse.Blur(jnp.ones((3, 3)), (SIZE, SIZE), boundary="mirror"),
        lambda: inverse.Downsample((5, 2), jnp.zeros((SIZE, SIZE))),
        lambda: inverse.Radon(jnp.zeros((2, 2)), SIZE),
        lambda: inverse.Radon(jnp.zeros(2), 0),
        lambda: Differences(jnp.zeros((3, 3)), 3),
        lambda: inverse.filtered_back_projection(OPERATORS["radon"], jnp.zeros((3, 3), FLOAT)),
    ],
)
def test_wrong_shapes_and_options_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
