"""Convert the Kaggle template to a notebook: `python scripts/make_notebook.py [OUTPUT]`.

Equal templates make equal files, to the byte.
"""

import argparse
import sys
from pathlib import Path

import jupytext

TEMPLATE = Path(__file__).with_name("kaggle_notebook_template.py")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook(template: Path = TEMPLATE) -> str:
    """A file in percent format as the JSON of a notebook; its cells are numbered, where jupytext draws their ids."""
    found = jupytext.read(template)
    found.metadata = METADATA
    for number, cell in enumerate(found.cells):
        cell.id = f"cell-{number}"
    return jupytext.writes(found, fmt="ipynb")


def main(argv: list[str] | None = None) -> int:
    """Write the notebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "output", nargs="?", default="kaggle_notebook.ipynb", help="default: kaggle_notebook.ipynb"
    )
    output = Path(parser.parse_args(argv).output)
    output.write_text(notebook(), encoding="utf-8")
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
