"""Draw committed figures again from their committed results; nothing is solved.

    python bench/figures.py [--only NAMES]

`linear_fidelity.png` needs the learners' curves: `python bench/linear_fidelity.py` draws it in a minute or two.
`inverse_tomogram_gpu.png` needs the images: `python bench/inverse_images.py --gpu`.
"""

import importlib
import json

import harness

FIGURES = {
    "constrained": "constrained.profile",
    "interior": "interior.profile",
    "curvature_training": "curvature_training.draw",
    "inverse": "inverse.draw",
    "linear_single": "linear.draw",
    "pde": "pde.picture",
    "statespace": "statespace.draw",
    "statespace_gpu": "statespace.draw",
    "stochastic": "stochastic.draw",
    "tensor": "tensor.draw",
    "transport_devices_gpu": "transport_devices.draw",
    "transport_float32": "transport.draw",
    "transport_float64": "transport.draw",
}


def main():
    options = harness.arguments(__doc__.splitlines()[0])
    for name, drawn_by in FIGURES.items():
        if harness.chosen(name, options.only):
            script, function = drawn_by.split(".")
            stem, _, dtype = name.partition("_float")
            saved = json.loads((options.out / f"{stem}.json").read_text())
            draw = getattr(importlib.import_module(script), function)
            which = {"dtype": f"float{dtype}"} if dtype else {}
            draw(saved["rows"], saved["machine"], options.out / f"{name}.png", **which)


if __name__ == "__main__":
    main()
