"""Write what the docs and requirements-kaggle.txt repeat from the code.

In every page of docs/, the option table between `<!-- options: TITLE -->` and `<!-- end -->` is the
table of the group TITLE (one of `compression_config.GROUPS`). requirements-kaggle.txt is
requirements.txt without the packages of Kaggle's image and those that only tests need. With --check
nothing is written: the exit code is 1 if a file is stale.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script has its own directory on the path, not the project's

from compression_config import GROUPS  # noqa: E402
from runtime.command_line import option_table  # noqa: E402

TABLE = re.compile(r"(<!-- options: (.+?) -->\n).*?(<!-- end -->)", re.S)
KAGGLE_PACKAGES = {"torch", "numpy", "pandas"}
TEST_PACKAGES = {"pytest", "pytest-xdist", "hypothesis", "jupytext", "nbclient", "ipykernel"}
KAGGLE_HEADER = (
    "# requirements.txt without what the image brings (torch, numpy, pandas) and what only tests "
    "need"
)


def fill_table(marker: re.Match) -> str:
    """The markers with the current table between them."""
    start, title, end = marker.groups()
    if title not in GROUPS:
        raise ValueError(
            f"the marker `<!-- options: {title} -->` must name one of {', '.join(GROUPS)}"
        )
    return f"{start}{option_table(title)}\n{end}"


def with_tables(text: str) -> str:
    """A page with the current option tables; ValueError if a marker names no group."""
    return TABLE.sub(fill_table, text)


def kaggle_requirements(requirements: str) -> str:
    """The pins that a notebook needs if its image has torch, numpy and pandas."""
    lines = [KAGGLE_HEADER]
    for line in requirements.splitlines():
        package = line.split("==")[0]
        if package not in KAGGLE_PACKAGES | TEST_PACKAGES:
            lines.append(line)
    return "\n".join(lines) + "\n"


def generated_files() -> dict[Path, str]:
    """Path -> content."""
    files = {}
    for path in sorted((ROOT / "docs").glob("*.md")):
        try:
            files[path] = with_tables(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SystemExit(f"{path.relative_to(ROOT)}: {error}") from None
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    files[ROOT / "requirements-kaggle.txt"] = kaggle_requirements(requirements)
    return files


def is_stale(path: Path, content: str) -> bool:
    """Whether a file is missing or differs from its content."""
    return not path.is_file() or path.read_text(encoding="utf-8") != content


def main(argv: list[str] | None = None) -> int:
    """Write the stale files, or with --check only name them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is stale"
    )
    options = parser.parse_args(argv)
    exit_code = 0
    for path, content in generated_files().items():
        if not is_stale(path, content):
            continue
        name = path.relative_to(ROOT)
        if options.check:
            print(f"{name} is stale: run python scripts/make_docs.py")
            exit_code = 1
        else:
            path.write_text(content, encoding="utf-8")
            print(f"{name} written")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
