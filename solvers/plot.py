"""Pictures of solutions: every function draws into Matplotlib axes and returns them.

Matplotlib is imported when a function is called, so that importing `solvers` stays light.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito's colours: told apart by colour-blind readers too."""

Axes = Any  # matplotlib.axes.Axes
Curve = Any  # a history, an array, or a solution with a history


def convergence(
    curves: Curve | Mapping[str, Curve],
    *,
    x: Mapping[str, Sequence[float]] | None = None,
    tol: float | None = None,
    xlabel: str = "steps",
    ylabel: str = "error",
    axes: Axes = None,
) -> Axes:
    """Draw errors over steps on a logarithmic scale.

    Parameters
    ----------
    curves : Solution, array or mapping of names to these
        Histories; of a solution, ``sol.history`` (solve with ``history=True``). NaN entries are left out.
    x : mapping of names to sequences, optional
        Abscissae, for instance seconds; steps 0, 1, 2, ... by default.
    tol : float, optional
        Draw a line there.
    xlabel, ylabel : str
        Labels.
    axes : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        `axes`, with what was drawn.
    """
    axes = _axes(axes)
    named = curves if isinstance(curves, Mapping) else {"": curves}
    for colour, (name, curve) in zip(_colours(len(named)), named.items(), strict=True):
        errors = _history(curve)
        abscissae = np.arange(len(errors)) if x is None else np.asarray(x[name], float)
        good = np.isfinite(errors) & (errors > 0)
        marker = "o" if good.sum() <= 60 else None
        axes.plot(abscissae[good], errors[good], label=name, color=colour, marker=marker, markersize=3.5, linewidth=1.6)
    axes.set_yscale("log")
    if tol is not None:
        axes.axhline(tol, color="#888888", linewidth=0.8, linestyle="--")
        axes.annotate("tol", (1, tol), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points",
                      ha="right", color="#666666", fontsize="small")  # fmt: skip
    if any(named):
        axes.legend(frameon=False)
    return _finish(axes, xlabel, ylabel)


def work_precision(
    results: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str = "seconds",
    ylabel: str = "error",
    axes: Axes = None,
) -> Axes:
    """Draw error reached against work done, both logarithmic: lower and further left is better.

    Parameters
    ----------
    results : mapping of names to (work, error)
        One curve a solver: its work (seconds, steps, products) and the errors it reached with it.
    xlabel, ylabel : str
        Labels.
    axes : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        `axes`, with what was drawn.
    """
    axes = _axes(axes)
    for colour, (name, (work, errors)) in zip(_colours(len(results)), results.items(), strict=True):
        axes.loglog(work, errors, label=name, color=colour, marker="o", markersize=4, linewidth=1.6)
    axes.legend(frameon=False)
    return _finish(axes, xlabel, ylabel)


def plan(
    plan: Any,
    x: Any | None = None,
    y: Any | None = None,
    *,
    most: int = 2000,
    axes: Axes = None,
) -> Axes:
    """Draw a transport plan: as lines between points of the plane, or as a matrix.

    Parameters
    ----------
    plan : Float[Array, "n m"]
        The masses moved, for instance ``sol.plan()``.
    x, y : Float[Array, "n 2"], Float[Array, "m 2"], optional
        Where the points lie. Without them the matrix is drawn, on a logarithmic scale of six decades.
    most : int
        Draw at most so many lines, the heaviest.
    axes : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        `axes`, with what was drawn.
    """
    axes = _axes(axes)
    P = np.asarray(plan, float)
    if x is None or y is None:
        from matplotlib.colors import LogNorm

        top = P.max()
        image = axes.imshow(np.maximum(P, 1e-6 * top), norm=LogNorm(1e-6 * top, top), cmap="magma_r", aspect="auto",
                            interpolation="nearest")  # fmt: skip
        axes.figure.colorbar(image, ax=axes, label="mass")
        axes.set_xlabel("target point")
        axes.set_ylabel("source point")
        return axes
    from matplotlib.collections import LineCollection

    x, y = np.asarray(x, float), np.asarray(y, float)
    heaviest = np.argsort(P, axis=None)[-most:]
    i, j = np.unravel_index(heaviest[P.ravel()[heaviest] > 1e-3 * P.max()], P.shape)
    strength = P[i, j] / P.max()
    colours = np.concatenate([np.tile([0.35, 0.35, 0.35], (len(i), 1)), 0.5 * strength[:, None]], 1)
    axes.add_collection(LineCollection(list(np.stack([x[i], y[j]], 1)), colors=colours, linewidths=0.8, zorder=1))
    for points, mass, colour, name in ((x, P.sum(1), PALETTE[0], "source"), (y, P.sum(0), PALETTE[1], "target")):
        axes.scatter(*points.T, s=14 * mass / mass.mean(), color=colour, label=name, zorder=2, linewidths=0)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.06))
    axes.set_aspect("equal")
    return axes


def _axes(axes: Axes) -> Axes:
    if axes is not None:
        return axes
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(5, 3.4), layout="constrained")[1]


def _colours(count: int) -> list[str]:
    return [PALETTE[k % len(PALETTE)] for k in range(count)]


def _history(curve: Curve) -> np.ndarray:
    errors = getattr(curve, "history", curve)
    if errors is None:
        raise ValueError("convergence: `curves` must be solutions with a history, got one solved without history=True")
    return np.asarray(errors, float).ravel()


def _finish(axes: Axes, xlabel: str, ylabel: str) -> Axes:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes
