"""Markdown from table cells, code, and text that comes from users."""

from __future__ import annotations

import re
from typing import Any

from runtime.errors import JOINERS

Cells = list[list[str]]  # lines of a table; the first contains the headings

REPLACEMENT = "\ufffd"
# characters that Markdown or HTML may interpret, and the dot of `www.`, which becomes a link
ACTIVE_CHARACTERS = re.compile(r"([\\`*_{}\[\]()<>#+!|~&@:$]|(?<=www)\.)", re.IGNORECASE)


def one_line(text: Any) -> str:
    """A text from outside on one line, with replacement characters for invisible ones."""
    characters = []
    for character in " ".join(str(text).split()):
        is_shown = character.isprintable() or character in JOINERS
        characters.append(character if is_shown else REPLACEMENT)
    return "".join(characters)


def escape_markdown(text: Any) -> str:
    """A text from outside as Markdown that renders as this text."""
    return ACTIVE_CHARACTERS.sub(r"\\\1", one_line(text))


def markdown_cell(text: str) -> str:
    """A table cell from a file, without characters that end the cell, or start HTML or a link."""
    return one_line(text).replace("|", "\\|").replace("<", "\\<").replace("](", "]\\(")


def code_block(language: str, text: str) -> str:
    """A fenced block of code; the fence is longer than any run of backticks in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def markdown_from_cells(lines: Cells) -> str:
    """Cells as a Markdown table."""
    head, *body = lines
    alignment = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, alignment, *body])
