"""The matrix-free path: the same answers as the dense one, and PDE control at a size where that is hopeless."""

import jax
import jax.numpy as jnp
import numpy as np

from solvers import KrylovKKT, Status, sketched_newton
from solvers.problems.constrained import HAND_WRITTEN, pde_control, pde_preconditioner

from ..conftest import FLOAT, needs_x64


@needs_x64
def test_agrees_with_the_dense_path_on_hs78_with_its_derivative():
    p = HAND_WRITTEN["HS78"]()

    def answer(kkt):
        def value(r):
            s = sketched_newton(
                lambda x, r: p.objective(x, None), p.x0, equality=lambda x, r: p.equality(x, None) - r, args=r, kkt=kkt
            )
            return s.value[0], s

        (_, s), slope = jax.value_and_grad(value, has_aux=True)(jnp.asarray([0.1, 0.0, -0.1]))
        return s, slope

    (dense, slope), (krylov, same) = answer("dense"), answer("krylov")
    assert krylov.status == Status.CONVERGED
    np.testing.assert_allclose(krylov.value, dense.value, atol=1e-7)
    np.testing.assert_allclose(krylov.multipliers, dense.multipliers, atol=1e-7)
    np.testing.assert_allclose(same, slope, rtol=1e-5)


@needs_x64
def test_pde_control_on_31_by_31_in_few_inner_steps():
    p = pde_control(31)
    kkt = KrylovKKT(pde_preconditioner(31))
    s = sketched_newton(p.objective, p.x0, equality=p.equality, args=p.args, kkt=kkt).check()
    np.testing.assert_allclose(s.objective, 1129.5124, rtol=1e-7)  # IPOPT on the same grid
    assert s.num_steps <= 8
    assert s.num_inner <= 20 * s.num_steps
    assert s.value["state"].shape == (31, 31)


@needs_x64
def test_an_infeasible_problem_is_called_so_without_matrices():
    s = sketched_newton(
        lambda x, _: jnp.sum(x**2), jnp.asarray([2.0, 1.0], FLOAT), equality=lambda x, _: x[:1] ** 2 + 1, kkt="krylov"
    )
    assert s.status == Status.INFEASIBLE
    np.testing.assert_allclose(s.value[0], 0, atol=1e-2)
