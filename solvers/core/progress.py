"""Progress meters: any callable of ``(step, error)``; these two print."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class print_progress:  # noqa: N801  used as a function: progress=print_progress()
    """Print one updating line ``label: step 12, error 3.4e-05``.

    Parameters
    ----------
    label : str
        What is being solved.
    every : float
        Least number of seconds between two prints.
    file : text file, optional
        Where to print; standard error by default.
    """

    def __init__(self, label: str = "solving", *, every: float = 0.1, file: TextIO | None = None):
        self.label, self.every, self.file = label, every, file
        self._last = -float("inf")

    def __call__(self, step: int, error: float) -> None:
        """Print ``step`` and ``error`` unless the last print was just now."""
        now = time.monotonic()
        if now - self._last < self.every:
            return
        self._last = now
        print(f"\r{self.label}: step {step}, error {error:.1e}   ", end="", file=self.file or sys.stderr, flush=True)


class tqdm_progress:  # noqa: N801
    """Show steps and error in a tqdm bar (needs tqdm).

    Parameters
    ----------
    label : str
        What is being solved.
    every : float
        Least number of seconds between two updates.
    """

    def __init__(self, label: str = "solving", *, every: float = 0.1):
        from tqdm.auto import tqdm

        self._bar = tqdm(desc=label, unit="step", mininterval=every)

    def __call__(self, step: int, error: float) -> None:
        """Move the bar to ``step`` and show ``error``."""
        self._bar.set_postfix(error=f"{error:.1e}", refresh=False)
        self._bar.update(step - self._bar.n)
