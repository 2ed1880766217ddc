"""Code for a model card: it loads the model and classifies two texts, with each engine and with the
libraries of the hub that read our files."""

from __future__ import annotations

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engines.engine import max_input_tokens, read_tokenizer_config
from reporting.markdown import code_block
from reporting.results import Row, is_timed

TEMPLATES_DIR = Path(__file__).parent / "templates"

EXAMPLE_TEXTS = ["a first text", "a second, somewhat longer text"]
GRAPH_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}  # engine -> package that runs it
JS_DTYPES = {  # graph -> what transformers.js calls it
    "onnx/model.onnx": "fp32",
    "onnx/model_quantized.onnx": "q8",
    "onnx/model_q4.onnx": "q4",
}
QUANTIZER_PACKAGES = {  # `quant_method` in config.json -> packages that load it
    "torchao": "`torchao`",
    "bitsandbytes": "`bitsandbytes` and `accelerate`",
}
SUFFIXES = {"python": "py", "javascript": "js"}
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


def render_snippet(name: str, language: str = "python", **values: Any) -> str:
    """A code block from the template `snippet_<name>.<suffix of the language>.jinja`."""
    template = SNIPPETS.get_template(f"snippet_{name}.{SUFFIXES[language]}.jinja")
    return code_block(language, template.render(texts=EXAMPLE_TEXTS, **values).rstrip("\n"))


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


def chosen_graph(rows: list[Row]) -> tuple[Row, str]:
    """The fastest graph, or the smallest if they were not timed, and by what it was chosen."""
    if all(map(is_timed, rows)):
        return min(rows, key=itemgetter("latency_ms_p50")), "fastest"
    return min(rows, key=itemgetter("bytes")), "smallest"


def graph_snippet(
    directory: Path, engine: str, rows: list[Row], *, multi_label: bool
) -> dict[str, str]:
    """Code that loads the fastest graph of an engine, or without times the smallest, and the
    packages that it requires."""
    config = read_tokenizer_config(directory)
    chosen, criterion = chosen_graph(rows)
    package = GRAPH_PACKAGES[engine]
    requirements = f"With `{package}` and `tokenizers`"
    if len(rows) > 1:
        requirements += f", the {criterion} of {len(rows)} graphs"
    code = render_snippet(
        engine,
        package=package,
        graph=weights_file(chosen),
        max_length=max_input_tokens(directory),
        truncation_side=config.get("truncation_side", "right"),
        multi_label=multi_label,
    )
    return {"requirements": requirements, "code": code}


def optimum_snippet(rows: list[Row], *, multi_label: bool) -> dict[str, str]:
    """Code that loads the same ONNX graph as `graph_snippet` with optimum-onnx."""
    chosen, _ = chosen_graph(rows)
    folder, _, file = weights_file(chosen).rpartition("/")
    requirements = (
        "The same graph with `optimum-onnx[onnxruntime]` (tested with 0.1.0), which needs an "
        "environment of its own, with an older `transformers`"
    )
    code = render_snippet("optimum", folder=folder, file=file, multi_label=multi_label)
    return {"requirements": requirements, "code": code}


def javascript_snippets(rows: list[Row], *, multi_label: bool) -> list[dict[str, str]]:
    """Code for transformers.js, if there is a graph that it can load."""
    loadable = [row for row in rows if weights_file(row) in JS_DTYPES]
    if not loadable:
        return []
    chosen, _ = chosen_graph(loadable)
    code = render_snippet(
        "transformers",
        "javascript",
        dtype=JS_DTYPES[weights_file(chosen)],
        multi_label=multi_label,
    )
    requirements = (
        "In JavaScript with `@huggingface/transformers` (tested with 4.3.2 in Node.js 20; save the "
        f"code as `use.mjs`), the graph `{weights_file(chosen)}`"
    )
    return [{"requirements": requirements, "code": code}]


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
        if engine == "onnx":
            snippets.append(optimum_snippet(rows_of_engine, multi_label=multi_label))
    snippets += javascript_snippets(rows, multi_label=multi_label)
    requirements = (
        "With the `inference.py` of the project that made it, in the current directory or on "
        "`PYTHONPATH`; it selects the fastest format on the machine, rejects modified files, and "
        "labels files too (`python inference.py --model DIR --input FILE --output FILE`)"
    )
    snippets.append({"requirements": requirements, "code": render_snippet("inference")})
    return snippets
