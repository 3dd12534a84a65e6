"""Contract entries of transport."""

import jax.numpy as jnp
import numpy as np

import solvers

from .case import Case


def _transport_data(rng):
    cost = (rng.random((6, 1)) - rng.random((1, 7))) ** 2
    a, b = (x / x.sum() for x in (rng.random(6) + 0.2, rng.random(7) + 0.2))
    return {"cost": cost, "a": a, "b": b, "epsilon": np.asarray(0.05)}


def _zero_sum(rng, n):
    x = rng.standard_normal(n)
    return 0.02 * (x - x.mean())


def _transport(name, **settings) -> Case:
    function = getattr(solvers, name)
    uneven = np.linspace(-1, 1, 7)

    def solve(data, **options):
        return function(data["cost"], data.get("a"), data.get("b"), epsilon=data["epsilon"], **settings, **options)

    return Case(
        name=name,
        solution=solvers.TransportSolution,
        make=_transport_data,
        solve=solve,
        poison="cost",
        warm=lambda data, solution: (data, {"init": solution.value}),
        zero=lambda: {
            "cost": np.zeros((6, 7)),
            "a": np.full(6, 1 / 6),
            "b": np.full(7, 1 / 7),
            "epsilon": np.asarray(0.5),
        },
        single=lambda: {"cost": np.full((1, 1), 3.0), "epsilon": np.asarray(0.5)},
        failing=lambda data: ({**data, "a": 2 * data["a"]}, {}, int(solvers.TransportStatus.UNEQUAL_MASSES)),
        differentiable=("cost", "a", "b", "epsilon"),
        direction=lambda rng, data: {
            "cost": 0.1 * rng.standard_normal((6, 7)),
            "a": _zero_sum(rng, 6),
            "b": _zero_sum(rng, 7),
            "epsilon": np.asarray(0.01),
        },
        observe=lambda s: jnp.sum(s.g * jnp.asarray(uneven, s.g.dtype)) + s.transport_cost + s.f[0],
    )


def _divergence_data(rng):
    a, b = (w / w.sum() for w in (rng.random(5) + 0.2, rng.random(6) + 0.2))
    return {"x": rng.random((5, 2)), "y": rng.random((6, 2)), "a": a, "b": b, "epsilon": np.asarray(0.1)}


def _divergence(data, **options):
    cloud = solvers.PointCloud(data["x"], data["y"])
    return solvers.sinkhorn_divergence(cloud, data.get("a"), data.get("b"), epsilon=data["epsilon"], **options)


_SINKHORN_DIVERGENCE = Case(
    name="sinkhorn_divergence",
    solution=solvers.DivergenceSolution,
    make=_divergence_data,
    solve=_divergence,
    poison="x",
    warm=lambda data, solution: (data, {"init": solution.between.value}),
    zero=lambda: {"x": np.zeros((3, 2)), "y": np.zeros((3, 2)), "epsilon": np.asarray(0.5)},
    single=lambda: {"x": np.ones((1, 1)), "y": np.zeros((1, 1)), "epsilon": np.asarray(0.5)},
    failing=lambda data: ({**data, "a": 2 * data["a"]}, {}, int(solvers.TransportStatus.UNEQUAL_MASSES)),
    differentiable=("x", "y", "a", "b", "epsilon"),
    direction=lambda rng, data: {
        "x": 0.1 * rng.standard_normal((5, 2)),
        "y": 0.1 * rng.standard_normal((6, 2)),
        "a": _zero_sum(rng, 5),
        "b": _zero_sum(rng, 6),
        "epsilon": np.asarray(0.01),
    },
    observe=lambda s: s.value,
)


def _unbalanced() -> Case:
    """The data of the balanced problem, at masses that differ, with a price each."""
    uneven = np.linspace(-1, 1, 7)

    def make(rng):
        data = _transport_data(rng)
        return {**data, "a": 1.5 * data["a"], "rho_a": np.asarray(0.5), "rho_b": np.asarray(1.0)}

    def solve(data, **options):
        prices = data["rho_a"], data["rho_b"]
        return solvers.unbalanced_sinkhorn(
            data["cost"], data.get("a"), data.get("b"), epsilon=data["epsilon"], rho=prices, **options
        )

    one = {"epsilon": np.asarray(0.5), "rho_a": np.asarray(0.5), "rho_b": np.asarray(1.0)}
    return Case(
        name="unbalanced_sinkhorn",
        solution=solvers.UnbalancedSolution,
        make=make,
        solve=solve,
        poison="cost",
        warm=lambda data, solution: (data, {"init": solution.value}),
        zero=lambda: {"cost": np.zeros((6, 7)), "a": np.full(6, 1 / 6), "b": np.full(7, 1 / 7), **one},
        single=lambda: {"cost": np.full((1, 1), 3.0), **one},
        failing=lambda data: ({**data, "a": -data["a"]}, {}, int(solvers.TransportStatus.NEGATIVE_WEIGHTS)),
        differentiable=("cost", "a", "b", "epsilon", "rho_a", "rho_b"),
        direction=lambda rng, data: {
            "cost": 0.1 * rng.standard_normal((6, 7)),
            "a": 0.02 * rng.standard_normal(6),
            "b": 0.02 * rng.standard_normal(7),
            **{k: np.asarray(0.01) for k in ("epsilon", "rho_a", "rho_b")},
        },
        observe=lambda s: jnp.sum(s.g * jnp.asarray(uneven, s.g.dtype)) + s.transport_cost + s.f[0],
        exact={"tol": 1e-14},
    )


_EXACT = Case(
    name="transport_exactly",
    solution=solvers.ExactSolution,
    make=lambda rng: {k: v for k, v in _transport_data(rng).items() if k != "epsilon"},
    solve=lambda data, **options: solvers.transport_exactly(data["cost"], data.get("a"), data.get("b"), **options),
    poison="cost",
    warm=None,
    zero=lambda: {"cost": np.zeros((6, 7)), "a": np.full(6, 1 / 6), "b": np.full(7, 1 / 7)},
    single=lambda: {"cost": np.full((1, 1), 3.0)},
    failing=lambda data: ({**data, "a": 2 * data["a"]}, {}, int(solvers.TransportStatus.UNEQUAL_MASSES)),
    differentiable=("cost", "a", "b"),
    direction=lambda rng, data: {
        "cost": 0.1 * rng.standard_normal((6, 7)),
        "a": _zero_sum(rng, 6),
        "b": _zero_sum(rng, 7),
    },
    observe=lambda s: s.transport_cost,
    tol={"float64": 1e-6, "float32": 5e-3},
    exact={"tol": 1e-8},
    orders=1,
    accuracy=1e-4,
)


def _gap(data, **options):
    return solvers.monge_gap(data["x"], data["mapped"], data.get("a"), epsilon=data["epsilon"], **options)


_MONGE_GAP = Case(
    name="monge_gap",
    solution=solvers.MongeGapSolution,
    make=lambda rng: {
        "x": rng.random((5, 2)),
        "mapped": rng.random((5, 2)),
        "a": _divergence_data(rng)["a"],
        "epsilon": np.asarray(0.1),
    },
    solve=_gap,
    poison="x",
    warm=None,
    zero=lambda: {
        "x": np.zeros((5, 2)), "mapped": np.zeros((5, 2)), "a": np.full(5, 1 / 5), "epsilon": np.asarray(0.1)
    },
    single=lambda: {"x": np.ones((1, 2)), "mapped": np.zeros((1, 2)), "epsilon": np.asarray(0.1)},
    failing=lambda data: ({**data, "a": -data["a"]}, {}, int(solvers.TransportStatus.NEGATIVE_WEIGHTS)),
    differentiable=("x", "mapped", "a", "epsilon"),
    direction=lambda rng, data: {
        "x": 0.1 * rng.standard_normal((5, 2)),
        "mapped": 0.1 * rng.standard_normal((5, 2)),
        "a": _zero_sum(rng, 5),
        "epsilon": np.asarray(0.01),
    },
    observe=lambda s: s.value,
)  # fmt: skip


def _barycenter_data(rng, k=2, n=6, m=5):
    points = [
        np.linspace(*ends, size)[:, None] + 0.02 * rng.random((size, 1))
        for ends, size in (((0, 1), n), ((0.1, 0.9), m))
    ]
    a, share = 1 + 0.5 * rng.random((k, n)), rng.random(k) + 0.5
    return {
        "cost": (points[0] - points[1].T) ** 2,
        "within": (points[1] - points[1].T) ** 2,
        "a": a / a.sum(1, keepdims=True),
        "shares": share / share.sum(),
        "epsilon": np.asarray(0.05),
    }


def _barycenter(data, **options):
    return solvers.barycenter(
        (data["cost"], data["within"]), data["a"], epsilon=data["epsilon"], shares=data["shares"], **options
    )


def _symmetric(rng, m):
    x = 0.02 * rng.standard_normal((m, m))
    return x + x.T


_BARYCENTER = Case(
    name="barycenter",
    solution=solvers.BarycenterSolution,
    make=_barycenter_data,
    solve=_barycenter,
    poison="cost",
    warm=None,
    zero=lambda: {**_barycenter_data(np.random.default_rng(23)), "cost": np.zeros((6, 5)), "within": np.zeros((5, 5))},
    single=lambda: _barycenter_data(np.random.default_rng(24), 1, 1, 1),
    failing=lambda data: ({**data, "a": 2 * data["a"]}, {}, int(solvers.TransportStatus.UNEQUAL_MASSES)),
    differentiable=("cost", "within", "a", "shares", "epsilon"),
    direction=lambda rng, data: {
        "cost": 0.01 * rng.standard_normal((6, 5)),
        "within": 0.1 * _symmetric(rng, 5),
        "a": np.stack([_zero_sum(rng, 6) for _ in range(2)]),
        "shares": np.array([0.05, -0.05]),
        "epsilon": np.asarray(0.002),
    },
    observe=lambda s: jnp.sum(s.value * jnp.arange(s.value.size, dtype=s.value.dtype)) + s.g[0, 0] - s.g[0, 1],
    tol={"float64": 1e-6, "float32": 1e-4},
)


def _free_data(rng, k=2, n=5, m=4):
    x = np.stack([np.linspace(0, 1 + j, n)[:, None] + 0.05 * rng.random((n, 1)) for j in range(k)])
    a, b, share = (1 + 0.5 * rng.random(shape) for shape in ((k, n), m, k))
    return {
        "x": np.concatenate([x, 0.3 * x**2], 2),
        "a": a / a.sum(1, keepdims=True),
        "b": b / b.sum(),
        "shares": share / share.sum(),
        "init": np.linspace(0.2, 1.2, m)[:, None] * np.array([1.0, 0.2]),
        "epsilon": np.asarray(0.05),
    }


def _free(data, **options):
    x, a, b, init, shares, epsilon = (data[name] for name in ("x", "a", "b", "init", "shares", "epsilon"))
    return solvers.free_support_barycenter(x, a, b, epsilon=epsilon, init=init, shares=shares, **options)


_FREE_SUPPORT = Case(
    name="free_support_barycenter",
    solution=solvers.FreeBarycenterSolution,
    make=_free_data,
    solve=_free,
    poison="x",
    warm=lambda data, solution: ({**data, "init": solution.value}, {}),
    zero=lambda: {**_free_data(np.random.default_rng(25)), "x": np.zeros((2, 5, 2)), "init": np.zeros((4, 2))},
    single=lambda: {**_free_data(np.random.default_rng(26), 1, 1, 1), "init": np.zeros((1, 2))},
    failing=lambda data: ({**data, "a": 2 * data["a"]}, {}, int(solvers.TransportStatus.UNEQUAL_MASSES)),
    differentiable=("x", "a", "b", "shares", "epsilon"),
    direction=lambda rng, data: {
        "x": 0.05 * rng.standard_normal((2, 5, 2)),
        "a": np.stack([_zero_sum(rng, 5) for _ in range(2)]),
        "b": _zero_sum(rng, 4),
        "shares": np.array([0.05, -0.05]),
        "epsilon": np.asarray(0.002),
    },
    observe=lambda s: jnp.sum(s.value * jnp.arange(s.value.size, dtype=s.value.dtype).reshape(s.value.shape)),
    tol={"float64": 1e-6, "float32": 1e-4},
)

CASES = [
    _BARYCENTER,
    _EXACT,
    _FREE_SUPPORT,
    _MONGE_GAP,
    _unbalanced(),
    _transport("sinkhorn"),
    _transport("sns_sinkhorn"),
    _SINKHORN_DIVERGENCE,
]
