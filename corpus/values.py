"""The distinct values of a column, and codes that stand for them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MISSING = -1  # code of a null; class id or flag of a row without a label


def encode_values(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Codes [rows] (positions in the distinct values; MISSING for null) and the distinct values."""
    encoded = pc.dictionary_encode(column)
    codes = [chunk.indices for chunk in encoded.chunks]
    distinct = encoded.chunk(0).dictionary  # all chunks share one dictionary
    return pa.chunked_array(codes).fill_null(MISSING).to_numpy(), distinct


def decode_values(codes: np.ndarray, values: list[int], default: int) -> np.ndarray:
    """`values[code]` of every code, and `default` where the code is MISSING."""
    decoded = np.full(len(codes), default)
    is_present = codes != MISSING
    decoded[is_present] = np.array(values, dtype=int)[codes[is_present]]
    return decoded
