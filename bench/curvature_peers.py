"""Other packages' estimators on the instances of `curvature.py`, `curvature_network.py`; none stays a row too."""

import importlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np


def installed(name: str) -> Any:
    """Return the module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def trace_estimators(products: int, n: int) -> dict[str, Callable]:
    """Return ``estimate(matrix, key)`` by name: value, standard error (NaN where none) and degrees of freedom."""
    found: dict[str, Callable] = {}
    if (traceax := installed("traceax")) and (lineax := installed("lineax")):
        for name, half in (("Hutchinson", 1), ("HutchPlusPlus", 1), ("XTrace", 2), ("XNysTrace", 1)):
            method = getattr(traceax, f"{name}Estimator")()
            tags = (lineax.symmetric_tag, lineax.positive_semidefinite_tag)

            def one(a, key, method=method, tags=tags, half=half):
                value, info = method.estimate(key, lineax.MatrixLinearOperator(a, tags), products)
                return value, info.get("std.err", jnp.nan), products / half - 1

            found[f"traceax {name}"] = one
    if matfree := installed("matfree.stochtrace"):
        for name, half in (("xtrace", 2), ("xnystrace", 1)):
            sampler = matfree.sampler_sphere(jnp.zeros(n), num=products // half)
            integrand = getattr(matfree, f"leave_one_out_{name}")()
            estimate = matfree.estimator_leave_one_out_mean_and_sem(integrand, sampler)
            found[f"matfree {name}"] = lambda a, key, e=estimate, half=half: (
                *e(lambda v: a @ v, key), products / half - 1)  # fmt: skip
        sampler = matfree.sampler_signs(jnp.zeros(n), num=products)
        plain = matfree.estimator_monte_carlo_mean_and_sem(matfree.monte_carlo_trace(), sampler)
        found["matfree Hutchinson"] = lambda a, key: (*plain(lambda v: a @ v, key), products - 1)
    return found


def pyhessian_network(params: dict, x: Any, y: Any, cuda: bool = False) -> Any:
    """Return PyHessian's Hessian of the same network, weights and data; None where torch or it is missing."""
    torch, pyhessian = installed("torch"), installed("pyhessian")
    if torch is None or pyhessian is None:
        return None
    layers: list[Any] = []
    for i in range(len(params) // 2):
        weight, bias = np.asarray(params[f"w{i}"]), np.asarray(params[f"b{i}"])
        linear = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(weight.T.copy()))
            linear.bias.copy_(torch.tensor(bias))
        layers += [linear, torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    data = (torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y), dtype=torch.long))
    torch.manual_seed(5)
    model = model.cuda() if cuda else model
    return pyhessian.hessian(model, torch.nn.CrossEntropyLoss(), data=data, cuda=cuda)


def pyhessian_density(hessian: Any, steps: int, probes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return nodes and weights of PyHessian's density; ``torch.eig``, which it calls, has left torch: lent here."""
    torch = installed("torch")

    def eig(matrix, eigenvectors=True):
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    before, torch.eig = torch.eig, eig
    try:
        nodes, weights = hessian.density(iter=steps, n_v=probes)
    finally:
        torch.eig = before
    return [(np.asarray(v), np.asarray(w)) for v, w in zip(nodes, weights, strict=True)]
