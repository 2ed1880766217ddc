"""The build backend of `pip install .`, which refuses in one line: nothing here is a package."""

import sys
from typing import NoReturn

REFUSAL = (
    "this project is not a package: run its commands in this directory, "
    "after pip install -r requirements.txt"
)


def build_wheel(*_arguments: object, **_settings: object) -> NoReturn:
    """Refuse to build what `pip install` would install."""
    sys.exit(REFUSAL)


build_sdist = build_wheel
build_editable = build_wheel
