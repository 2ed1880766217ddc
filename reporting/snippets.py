"""Code for a model card: Python that loads the model and classifies two texts, for each engine."""

from __future__ import annotations

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engines.engine import max_input_tokens, read_tokenizer_config
from reporting.markdown import code_block
from reporting.results import Row

TEMPLATES_DIR = Path(__file__).parent / "templates"

EXAMPLE_TEXTS = ["a first text", "a second, somewhat longer text"]
GRAPH_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}  # engine -> package that runs it
QUANTIZER_PACKAGES = {  # `quant_method` in config.json -> packages that load it
    "torchao": "`torchao`",
    "bitsandbytes": "`bitsandbytes` and `accelerate`",
}
WEIGHT_SUFFIXES = (".onnx", ".xml", ".safetensors")


def python_literal(value: Any) -> str:
    """`repr`, with double quotes where this needs no escapes."""
    text = repr(value)
    return text if '"' in text or "\\" in text else text.replace("'", '"')


# Snippets are Python: nothing is escaped for HTML; every inserted string is a literal.
SNIPPETS = Environment(
    loader=FileSystemLoader(TEMPLATES_DIR),
    autoescape=False,
    undefined=StrictUndefined,
    trim_blocks=True,
)
SNIPPETS.filters["literal"] = python_literal


def weights_file(row: Row) -> str:
    """The weights or the graph of a format, relative to the directory of the model."""
    for name in row["files"].split():
        if name.endswith(WEIGHT_SUFFIXES):
            return name
    raise ValueError(f"{row['stage']} has no weights among {row['files']}")


def engines_of(rows: list[Row]) -> list[str]:
    """The engines of the rows, without duplicates, in order."""
    return list(dict.fromkeys(row["engine"] for row in rows))


def render_snippet(name: str, **values: Any) -> str:
    """A code block of Python from the template `snippet_<name>.py.jinja`."""
    template = SNIPPETS.get_template(f"snippet_{name}.py.jinja")
    return code_block("python", template.render(texts=EXAMPLE_TEXTS, **values).rstrip("\n"))


def torch_snippet(directory: Path, *, multi_label: bool) -> dict[str, str]:
    """Code that loads the torch format, and the packages that it requires."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    method = config.get("quantization_config", {}).get("quant_method")
    requirements = "With `torch` and `transformers`"
    if method:
        packages = QUANTIZER_PACKAGES.get(method, f"`{method}`")
        requirements += f", and {packages}, because its weights are quantized by `{method}`"
    return {
        "requirements": requirements,
        "code": render_snippet("torch", multi_label=multi_label),
    }


def graph_snippet(
    directory: Path, engine: str, rows: list[Row], *, multi_label: bool
) -> dict[str, str]:
    """Code that loads the fastest graph of an engine, and the packages that it requires."""
    config = read_tokenizer_config(directory)
    fastest = min(rows, key=itemgetter("latency_ms_p50"))
    package = GRAPH_PACKAGES[engine]
    requirements = f"With `{package}` and `tokenizers`"
    if len(rows) > 1:
        requirements += f", the fastest of {len(rows)} graphs"
    code = render_snippet(
        engine,
        package=package,
        graph=weights_file(fastest),
        max_length=max_input_tokens(directory),
        truncation_side=config.get("truncation_side", "right"),
        multi_label=multi_label,
    )
    return {"requirements": requirements, "code": code}


def snippets_of(directory: Path, rows: list[Row], *, multi_label: bool) -> list[dict[str, str]]:
    """Code for each engine and for `inference.py`; it runs in the directory of the model."""
    if not rows:
        return []
    snippets = []
    for engine in engines_of(rows):
        if engine == "torch":
            snippets.append(torch_snippet(directory, multi_label=multi_label))
        else:
            rows_of_engine = [row for row in rows if row["engine"] == engine]
            snippets.append(
                graph_snippet(directory, engine, rows_of_engine, multi_label=multi_label)
            )
    requirements = (
        "With the `inference.py` of the project that made it, in the current directory or on "
        "`PYTHONPATH`; it selects the fastest format on the machine, rejects modified files, and "
        "labels files too (`python inference.py --model DIR --input FILE --output FILE`)"
    )
    snippets.append({"requirements": requirements, "code": render_snippet("inference")})
    return snippets
