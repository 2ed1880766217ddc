"""Several labels in one cell: lists, and labels with a separator between them.

A separator is detected only if the parts of a cell also occur without each other, so that a class
name with a comma in it stays one label (`separates_labels`).
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from corpus.row_formats import decode_json

SEPARATORS = "|;,"  # those that are detected

NO_SEPARATOR = "none"  # as --label_separator: every cell is one label

MAX_LABELS = 1000

NUMBER = re.compile(r"[+-]?[0-9]+")

Labels = tuple[str, ...]


class CellFormat(NamedTuple):
    """How the cells of a label column are read: as lists, with a separator, or as one label."""

    has_lists: bool = False
    separator: str | None = None

    @property
    def has_several_labels(self) -> bool:
        """Whether a cell may have several labels."""
        return self.has_lists or self.separator is not None


def parse_list(cell: str) -> Any:
    """The value of a JSON list, of a Python list as pandas writes it, or of Label Studio's
    `{"choices": [...]}`; None if the cell is nothing of the kind."""
    if not cell.startswith(("[", '{"choices"')):
        return None
    value, _, error = decode_json(cell)
    if error:
        try:
            value = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if isinstance(value, dict):
        value = value.get("choices")
    return value if isinstance(value, list) else None


def list_labels(cell: str) -> Labels | None:
    """The labels of a list; None if the cell is no list of words, numbers or true and false."""
    values = parse_list(cell)
    if values is None:
        return None
    labels = []
    for value in values:
        if isinstance(value, bool):
            labels.append(str(value).lower())
        elif isinstance(value, str | int | float) and str(value).strip():
            labels.append(str(value).strip())
        else:
            return None
    return tuple(labels)


def split_labels(cell: str, separator: str) -> Labels:
    """The parts of a cell, without surrounding white space and without empty ones."""
    parts = [part.strip() for part in cell.split(separator)]
    return tuple(part for part in parts if part)


def decimal_commas(combinations: Sequence[Labels]) -> bool:
    """Whether all combinations are two whole numbers, as `2,5` is in many languages."""
    for parts in combinations:
        if len(parts) != 2 or not all(map(NUMBER.fullmatch, parts)):
            return False
    return True


def separates_labels(cells: Iterable[str], separator: str) -> bool:
    """Whether a separator plainly joins labels in the distinct cells of a column.

    All of the following hold: some cells have several parts; no part is empty or twice in its cell;
    with `|`, every part of such a cell is also in another cell; with `;` and `,`, every part is
    also a cell of its own; and with `,`, not all combinations are two whole numbers.
    """
    combinations = []
    cells_of_part: dict[str, int] = defaultdict(int)
    single_parts = set()
    for cell in cells:
        parts = [part.strip() for part in cell.split(separator)]
        if len(set(parts)) < len(parts) or "" in parts:
            return False
        for part in parts:
            cells_of_part[part] += 1
        if len(parts) == 1:
            single_parts.add(parts[0])
        else:
            combinations.append(parts)
        if len(cells_of_part) > MAX_LABELS:
            return False
    if not combinations or (separator == "," and decimal_commas(combinations)):
        return False
    for parts in combinations:
        for part in parts:
            is_separate = cells_of_part[part] > 1 if separator == "|" else part in single_parts
            if not is_separate:
                return False
    return True


def detect_format(cells: Sequence[str]) -> CellFormat:
    """How the distinct cells of a column, without missing ones, are read.

    Lists are read if there are any; the other cells then are one label each, or have a separator
    in between. With several possible separators, none is chosen.
    """
    others = []
    has_lists = False
    for cell in cells:
        if list_labels(cell) is None:
            others.append(cell)
        else:
            has_lists = True
    separators = [one for one in SEPARATORS if separates_labels(others, one)]
    return CellFormat(has_lists, separators[0] if len(separators) == 1 else None)


def possible_separator(cells: Sequence[str]) -> tuple[str, str] | None:
    """(separator, cell) if a cell of a column that is read as one label might be several: one of
    its parts is also in another cell."""
    for separator in SEPARATORS:
        cells_of_part: dict[str, int] = defaultdict(int)
        for cell in cells:
            for part in set(split_labels(cell, separator)):
                cells_of_part[part] += 1
        for cell in cells:
            parts = split_labels(cell, separator)
            if len(parts) > 1 and any(cells_of_part[part] > 1 for part in parts):
                return separator, cell
    return None


def cell_labels(cell: str, cell_format: CellFormat) -> Labels:
    """The labels of a cell."""
    if cell_format.has_lists or cell_format.separator:
        labels = list_labels(cell)
        if labels is not None:
            return labels
    if cell_format.separator:
        return split_labels(cell, cell_format.separator)
    return (cell,)
