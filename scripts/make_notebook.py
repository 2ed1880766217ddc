"""Convert the Kaggle template to a notebook: `python scripts/make_notebook.py [OUTPUT]`.

The same template always gives the same bytes.
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


def to_notebook(template: Path = TEMPLATE) -> str:
    """A file in percent format as notebook JSON. Cell ids are numbers: jupytext's are random."""
    notebook = jupytext.read(template)
    notebook.metadata = METADATA
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return jupytext.writes(notebook, fmt="ipynb")


def main(argv: list[str] | None = None) -> int:
    """Write the notebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "output", nargs="?", default="kaggle_notebook.ipynb", help="default: %(default)s"
    )
    output = Path(parser.parse_args(argv).output)
    output.write_text(to_notebook(), encoding="utf-8")
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
