"""Write what the docs and requirements-kaggle.txt repeat from the code: option tables, and pins without Kaggle's own.

With --check nothing is written: it exits with 1 and names the files that are stale.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import compression_config  # noqa: E402

TABLE = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end -->)", re.S)
KAGGLE_HAS = {"torch", "numpy", "pandas"}
ONLY_TESTS = {"pytest", "hypothesis", "jupytext", "nbclient", "ipykernel"}
KAGGLE_HEADER = "# requirements.txt without what the image brings (torch, numpy, pandas) and what only tests need"


def with_tables(text: str) -> str:
    """A page with each of its option tables as `option_table` gives it now."""
    return TABLE.sub(
        lambda found: (
            found[1]
            + compression_config.option_table(getattr(compression_config, found[2]))
            + "\n"
            + found[3]
        ),
        text,
    )


def kaggle_requirements(requirements: str) -> str:
    """The pins that a notebook which brings torch, numpy and pandas still needs."""
    lines = [
        line
        for line in requirements.splitlines()
        if line.split("==")[0] not in KAGGLE_HAS | ONLY_TESTS
    ]
    return "\n".join([KAGGLE_HEADER, *lines]) + "\n"


def generated() -> dict[Path, str]:
    """Path -> what the file should hold."""
    pages = {
        path: with_tables(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "docs").glob("*.md"))
    }
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return pages | {ROOT / "requirements-kaggle.txt": kaggle_requirements(requirements)}


def main(argv: list[str] | None = None) -> int:
    """Write what is stale, or with --check only name it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is stale"
    )
    check = parser.parse_args(argv).check
    stale = [
        (path, text)
        for path, text in generated().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        print(
            f"{path.relative_to(ROOT)} {'is stale: run python scripts/make_docs.py' if check else 'written'}"
        )
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
