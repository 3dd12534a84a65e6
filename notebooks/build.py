"""Execute notebooks in place, so that they are committed with their outputs.

python notebooks/build.py                    all of them
python notebooks/build.py 01_sns_sinkhorn    one of them
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(path: Path) -> None:
    """Run all cells in a fresh kernel and write the notebook back without timings and machine names."""
    start = time.monotonic()
    notebook = nbformat.read(path, as_version=4)
    inline = "module://matplotlib_inline.backend_inline"  # another one would leave the pictures out, without a word
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "MPLBACKEND": inline}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}})
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            execute(path)
