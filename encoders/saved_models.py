"""Model and tokenizer of a directory that a stage wrote, here or elsewhere.

The directory may be a stranger's: no code that comes with it is run, and no pickle is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def load_saved_model(directory: Path | str, **arguments: Any) -> PreTrainedModel:
    """The model of a directory; `arguments` are those of `from_pretrained`."""
    return AutoModelForSequenceClassification.from_pretrained(
        directory, trust_remote_code=False, use_safetensors=True, **arguments
    )


def load_saved_tokenizer(directory: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory."""
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
