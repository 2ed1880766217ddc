"""Keys by which texts are compared: normalized texts, also without case and punctuation.

A key is never fed to a model: models read the raw text.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

# The patterns are in RE2 syntax.
WHITESPACE = r"[\s\x0b\x{1c}-\x{1f}\x{85}\p{Z}]+"  # the separators of Python's str.split()

UNFOLDED_WHITESPACE = (  # white space that is not a single space between two words
    r"  |^ | $"
    r"|[\t-\r\x{1c}-\x{1f}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}"
    r"\p{Zl}\p{Zp}\x{202f}\x{205f}\x{3000}]"
)

FORMAT_CHARACTER = r"\p{Cf}"  # zero-width characters and direction marks

PUNCTUATION = r"[^\p{L}\p{M}\p{N} ]"  # everything but letters, marks, digits and spaces


def map_chunks(
    function: Callable[[pa.Array], pa.Array], column: pa.ChunkedArray
) -> pa.ChunkedArray:
    """Apply a function to every chunk, on all cores: Arrow's string functions use one core."""
    chunks = column.chunks or [column.combine_chunks()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return pa.chunked_array(list(pool.map(function, chunks)))


def replace_matches(texts: pa.Array, needle: str, pattern: str, replacement: str) -> pa.Array:
    """Replace `pattern`, but only in texts that match `needle`: matching is much cheaper."""
    is_match = pc.match_substring_regex(texts, needle)
    if not pc.any(is_match).as_py():
        return texts
    replaced = pc.replace_substring_regex(texts.filter(is_match), pattern, replacement)
    return pc.replace_with_mask(texts, is_match, replaced)


def normalize_nfc(texts: pa.Array) -> pa.Array:
    """The texts in Unicode normalization form C; ASCII texts are already in it."""
    is_unicode = pc.invert(pc.string_is_ascii(texts))
    normalized = pc.utf8_normalize(texts.filter(is_unicode), "NFC")
    return pc.replace_with_mask(texts, is_unicode, normalized)


def text_key(texts: pa.Array) -> pa.Array:
    """The normalized texts: format characters removed, NFC, white space folded to single spaces.

    Texts with the same key are duplicates.
    """
    visible = replace_matches(texts, FORMAT_CHARACTER, FORMAT_CHARACTER + "+", "")
    folded = replace_matches(normalize_nfc(visible), UNFOLDED_WHITESPACE, WHITESPACE, " ")
    return pc.utf8_trim(folded, " ")


def near_duplicate_key(keys: pa.Array) -> pa.Array:
    """Text keys in lower case, without punctuation and symbols.

    Texts with the same result are near-duplicates.
    """
    lower = pc.utf8_lower(keys)
    words = replace_matches(lower, PUNCTUATION, PUNCTUATION + "+", "")
    return pc.utf8_trim(replace_matches(words, "  ", " +", " "), " ")
