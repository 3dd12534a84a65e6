"""What ``python -m solvers`` shows: one real problem a family, solved, timed and drawn.

Each family has a module here with ``run(plots, say)``, which solves, calls ``say(line)`` as it goes, writes pictures
into the folder ``plots`` and returns a list of `Record`. Adding a family is its module and one line of `FAMILIES`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from .record import Record as Record

Say: TypeAlias = Callable[[str], None]

FAMILIES: dict[str, str] = {
    "linear": "a heat simulation whose relaxation is learned from its own step counts",
    "inverse": "a tomogram from few views: by total variation, and by the classical filter",
    "transport": "the colours of one photograph moved to another",
    "stochastic": "sensors that learn together by gossip, at rates designed for their links",
    "bilevel": "64 weight decays of a classifier, tuned by gradients through its training",
    "pde": "a differential equation with three scales, by a spectral Gaussian-process solve",
    "ode": "an oscillator, and the stiffness that its solver saw on the way",
    "sde": "a call priced at all times and prices from simulated paths, by one linear solve",
    "curvature": "a digit classifier: its natural gradient, and the curvature of its loss by pixel",
    "compression": "bits for the layers of a ResNet18 under a budget of memory, proved best",
    "convexnets": "handwritten threes and fives told apart by a network with a certificate for its activation patterns",
    "lowrank": "half of a photograph's pixels from the other half",
    "statespace": "the past in 32 numbers, made diagonal: the distance that S4D keeps, and a thousandth of it",
    "tensor": "products of functions on the sphere, on the smallest grid that is exact",
    "constrained": "digits told odd from even by weights on a sphere, and within bounds",
}
"""Name of the module, and what it shows."""


def run(family: str, plots: Path, say: Say) -> list[Record]:
    """Run one family's part of the tour."""
    return importlib.import_module(f".{family}", __package__).run(plots, say)
