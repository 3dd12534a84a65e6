"""Draw committed figures again from their committed results; nothing is solved.

    python bench/figures.py [--only NAMES]

`linear_fidelity.png` needs the learners' curves: `python bench/linear_fidelity.py` draws it in a minute or two.
"""

import importlib
import json

import harness

FIGURES = {
    "constrained": "constrained.profile",
    "interior": "interior.profile",
    "curvature_training": "curvature_training.draw",
    "linear_single": "linear.draw",
    "pde": "pde.picture",
}


def main():
    options = harness.arguments(__doc__.splitlines()[0])
    for name, drawn_by in FIGURES.items():
        if harness.chosen(name, options.only):
            script, function = drawn_by.split(".")
            saved = json.loads((options.out / f"{name}.json").read_text())
            draw = getattr(importlib.import_module(script), function)
            draw(saved["rows"], saved["machine"], options.out / f"{name}.png")


if __name__ == "__main__":
    main()
