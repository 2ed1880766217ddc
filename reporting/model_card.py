"""The model card: `README.md` of an artifact, with the metadata that the Hugging Face hub reads. No torch.

Names of files, columns and labels come from outside: they are put on one line and escaped, so that they break neither
YAML nor Markdown. A card says what is known; a licence is not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from tokenizers import Tokenizer

from compression_config import PIPELINES
from engines.engine import max_input_tokens, pad_token, read_tokenizer_config
from reporting.results import difference_text, markdown_of

CARD = "README.md"

Row = dict[str, Any]

JOINERS = "\u200c\u200d"  # not printable, but part of words in several scripts

ACTIVE = re.compile(
    r"([\\`*_{}\[\]()<>#+!|~&@:$]|(?<=www)\.)", re.I
)  # what Markdown or HTML may act on

MADE_BY = {
    "torchao": "torchao",
    "bitsandbytes": "bitsandbytes` and `accelerate",
}  # config.json's method -> packages

EXAMPLE_TEXTS = ["a first text", "a second, somewhat longer text"]

GRAPH_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}  # engine -> what serves its graphs

DECIDE_LINES = {  # problem type -> the line of a snippet that turns logits to labels
    "single_label_classification": "print([names[{key}] for i in logits.argmax(axis=1)])",
    "multi_label_classification": "print([[names[{key}] for i in row.nonzero()[0]] for row in logits > 0])",
}

TORCH_SNIPPET = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

texts = {texts}
tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".")
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    logits = model(**batch).logits.numpy()
names = model.config.id2label
{decide}"""

GRAPH_SNIPPET = """import json
from pathlib import Path

import numpy as np
import {package}
from tokenizers import Tokenizer

texts = {texts}
tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation({longest}{cut})
tokenizer.enable_padding(pad_id={pad_id}, pad_token={pad!r}{filled})
rows = tokenizer.encode_batch(texts)
batch = {{"input_ids": np.array([row.ids for row in rows]),
         "attention_mask": np.array([row.attention_mask for row in rows])}}
{run}
names = json.loads(Path("config.json").read_text(encoding="utf-8"))["id2label"]
{decide}"""

RUN_LINES = {  # engine -> the lines of a snippet that turn a batch to logits
    "onnx": """session = onnxruntime.InferenceSession("{graph}")
logits = session.run(["logits"], batch)[0]""",
    "openvino": """model = openvino.Core().compile_model("{graph}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
logits = model(batch)[model.output(0)]""",
}

INFERENCE_SNIPPET = """from inference import load

for answer in load(".")({texts}):
    print(answer["label"], answer["scores"])"""


def one_line(text: Any) -> str:
    """Text from outside on one line, without characters that do not show."""
    return "".join(
        c if c.isprintable() or c in JOINERS else "\ufffd" for c in " ".join(str(text).split())
    )


def escape_markdown(text: Any) -> str:
    """Text from outside as Markdown shows it to the letter."""
    return ACTIVE.sub(r"\\\1", one_line(text))


def code_block(language: str, text: str) -> str:
    """A block of code that nothing in it can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def is_hub_name(spec: str) -> bool:
    """Whether an option that names a model means one of the hub."""
    try:
        validate_repo_id(spec)
    except HFValidationError:
        return False
    return not Path(spec).is_dir()


def base_models(options: dict[str, Any]) -> list[str]:
    """The hub's models that this one was made from: the teacher, and what the student started from."""
    distills = "distill" in PIPELINES[options["pipeline"]]
    specs = dict.fromkeys(
        options[name] for name in ("teacher_path", "student_path") if distills or name[0] == "t"
    )
    return [spec for spec in specs if is_hub_name(spec)]


def eval_results(rows: list[Row], options: dict[str, Any]) -> list[EvalResult]:
    """Macro-F1 and accuracy of every row, as the hub's metadata has them."""
    task = {
        "task_type": "text-classification",
        "task_name": "Text Classification",
        "dataset_split": "test",
        "dataset_name": one_line(Path(options["dataset_path"]).name),
        "dataset_type": "text",
    }
    metrics = (
        ("f1", "macro_f1", "macro-F1", {"average": "macro"}),
        ("accuracy", "accuracy", "accuracy", None),
    )
    return [
        EvalResult(
            **task,
            metric_type=kind,
            metric_value=row[column],
            metric_name=f"{name}, {row['stage']}",
            metric_args=settings,
        )
        for row in rows
        for kind, column, name, settings in metrics
    ]


def engines_of(rows: list[Row]) -> list[str]:
    """The engines that serve the rows, each once."""
    return list(dict.fromkeys(row["engine"] for row in rows))


def metadata(rows: list[Row], options: dict[str, Any], about: dict[str, Any]) -> ModelCardData:
    """What the hub reads: task, libraries, the models of the hub that this one was made from, results on test."""
    results, engines = eval_results(rows, options), engines_of(rows)
    steps = {"distill": "knowledge-distillation", "prune": "pruning", "quantize": "quantization"}
    return ModelCardData(
        library_name="transformers" if "torch" in engines else engines[0] if engines else None,
        pipeline_tag="text-classification",
        base_model=base_models(options) or None,
        metrics=["f1", "accuracy"],
        tags=[
            "model-compression",
            *(steps[stage] for stage in PIPELINES[options["pipeline"]]),
            *(engine for engine in engines if engine != "torch"),
        ],
        model_name=about["experiment"] if results else None,
        eval_results=results or None,
    )


def interval_text(row: Row, metric: str) -> str:
    """A metric with its 95 % interval."""
    return f"{row[metric]:.4f} [{row[f'{metric}_low']:.4f}, {row[f'{metric}_high']:.4f}]"


def summary(rows: list[Row], teacher: Row, about: dict[str, Any]) -> str:
    """What it is in one sentence, with the figures of the smallest form."""
    kind = "any number" if about["problem_type"].startswith("multi") else "one"
    what = f"A text classifier that gives a text {kind} of {len(about['labels'])} labels"
    if not rows:
        return f"{what}; no form of it is here, because each lost more than the run's `--max_f1_drop` allows."
    row = min(rows, key=lambda row: row["bytes"])
    against = difference_text(row)
    lost = f", {against} points against its teacher (95 % interval)" if against else ""
    before = (
        f" (its teacher: {teacher['size_mb']:.2f} MB and {teacher['latency_ms_p50']:.2f} ms)"
        if against
        else ""
    )
    return (
        f"{what}: {row['size_mb']:.2f} MB and {row['latency_ms_p50']:.2f} ms a text as `{row['stage']}`{before}, "
        f"macro-F1 {row['macro_f1']:.4f} on {about['split_rows']['test']:,} test rows{lost}."
    )


def data_section(options: dict[str, Any], about: dict[str, Any]) -> str:
    """The file, its columns, and how many rows of each split have each label."""
    splits, counts = about["split_rows"], about["label_rows"]
    lines = [
        ["label", *(f"rows of {name}" for name in splits)],
        *(
            [escape_markdown(label), *(f"{counts[name][label]:,}" for name in splits)]
            for label in about["labels"]
        ),
        ["all rows", *(f"{rows:,}" for rows in splits.values())],
    ]
    more = [
        f"{name}: {escape_markdown(Path(options[name]).name)}"
        for name in ("validation_path", "test_path", "unlabeled_path")
        if options[name]
    ]
    several = about["problem_type"].startswith("multi")
    return "\n\n".join(
        [
            f"File: {escape_markdown(Path(options['dataset_path']).name)}{''.join(f'; {escape_markdown(one)}' for one in more)}. Text: column "
            f"{escape_markdown(options['text_column'])}. Labels: {', '.join(map(escape_markdown, options['label_columns']))}, of which "
            f"{'any number may hold at once' if several else 'exactly one holds'} (`{about['problem_type']}`).",
            markdown_of(lines),
            "Training saw the training rows, validation rows chose epochs (and thresholds), test rows were only measured "
            "on. Copies of one text stand on one side.",
        ]
    )


def origin_section(teacher: Row, options: dict[str, Any]) -> str:
    """Teacher, student, and the steps from the one to the other."""
    epochs = options["teacher_epochs"]
    tuned = f"fine-tuned for at most {epochs} epochs" if epochs else "as it was"
    lines = [
        f"- Teacher: {escape_markdown(options['teacher_path'])}, {tuned}; {teacher['parameters']:,} parameters, macro-F1 "
        f"{interval_text(teacher, 'macro_f1')}."
    ]
    steps = PIPELINES[options["pipeline"]]
    if "distill" in steps:
        lines.append(
            f"- Student: {escape_markdown(options['student_path'])}, distilled (`{options['kd_method']}`) for at most "
            f"{options['epochs']} epochs, alpha {options['kd_alpha']:g}, temperature "
            f"{options['kd_temperature']:g}."
        )
    if "prune" in steps:
        which = {
            "all": "encoder's Linears",
            "attention": "attention's Linears",
            "ffn": "feed-forward blocks",
        }
        lines.append(
            f"- Pruned: {100 * options['prune_sparsity']:g} % of the weights of the "
            f"{which[options['prune_layers']]} are zero (`{options['prune_method']}`); at most "
            f"{options['fine_tune_epochs']} epochs of recovery."
        )
    if options["qat"] != "none":
        lines.append(
            f"- Made ready for `{options['qat']}`: {options['qat_epochs']} epochs with its "
            "rounding in the loop."
        )
    if "quantize" in steps:
        lines.append(f"- Quantized: `{options['quant_method']}`.")
    if options["export"] != "none":
        lines.append(f"- Exported: `{options['export']}`.")
    return "\n".join(lines)


def served_file(row: Row) -> str:
    """The weights or graph of a form, relative to the artifact."""
    files = row["files"].split()
    return next(name for name in files if name.endswith((".onnx", ".xml", ".safetensors")))


def results_section(
    rows: list[Row],
    references: list[Row],
    notes: list[str],
    options: dict[str, Any],
    about: dict[str, Any],
) -> str:
    """Every shipped form beside the references, and the F1 of each label."""
    forms = [*references, *(row for row in rows if row["stage"] != "teacher")]
    head = [
        "form",
        "file",
        "MB",
        "smaller",
        "ms a text",
        "faster",
        "macro-F1",
        "against the teacher, points",
        "accuracy",
        "agreement",
    ]
    lines = [
        [
            f"`{row['stage']}`",
            f"`{served_file(row)}`" if row in rows else "not here",
            f"{row['size_mb']:.2f}",
            f"{row['compression_ratio']:.2f}x",
            f"{row['latency_ms_p50']:.2f}",
            f"{row['speedup_torch']:.2f}x",
            interval_text(row, "macro_f1"),
            difference_text(row),
            interval_text(row, "accuracy"),
            f"{row['agreement']:.4f}",
        ]
        for row in forms
    ]
    labels = [
        ["F1 of", *(f"`{row['stage']}`" for row in forms)],
        *(
            [escape_markdown(label), *(f"{row[f'f1.{label}']:.4f}" for row in forms)]
            for label in about["labels"]
        ),
    ]
    missed = [
        f"`{row['stage']}` gives no test row: {escape_markdown(row['never_predicted'])}."
        for row in forms
        if row.get("never_predicted")
    ]
    missed += [f"Note: {escape_markdown(note)}." for note in notes]
    where, which = about["machine"], about["shipped"]
    on_gpu = (
        f"; torch on {escape_markdown(str(where['gpu']))}" if options["device"] == "cuda" else ""
    )
    repeated = f" This is {which} of a repeated run; the others and their mean are in `results_final.json`."
    return "\n\n".join(
        [
            markdown_of([head, *lines]),
            "On the test rows, with 95 % bootstrap intervals; those against the teacher are of pairs. `linear` is TF-IDF "
            "with logistic regression, for reference. Times: batch 1, "
            f"forward pass alone, {escape_markdown(where['cpu'])}, {where['cores']} cores{on_gpu}."
            f"{'' if which == 'the one run' else repeated}",
            markdown_of(labels),
            *missed,
        ]
    )


def decision_line(about: dict[str, Any], key: str) -> str:
    """The line of a snippet that turns logits to labels; `key` finds a label's name."""
    return DECIDE_LINES[about["problem_type"]].format(key=key)


def torch_snippet(directory: Path, about: dict[str, Any]) -> str:
    """What loads the torch form, and what must be installed."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    method = config.get("quantization_config", {}).get("quant_method")
    more = (
        f", and `{MADE_BY.get(method, method)}`, because its weights are quantized by `{method}`"
        if method
        else ""
    )
    code = TORCH_SNIPPET.format(texts=json.dumps(EXAMPLE_TEXTS), decide=decision_line(about, "i"))
    return f"With `torch` and `transformers`{more}:\n\n{code_block('python', code)}"


def graph_snippet(directory: Path, engine: str, rows: list[Row], about: dict[str, Any]) -> str:
    """What loads the fastest graph of an engine, with its package and `tokenizers`."""
    config = read_tokenizer_config(directory)
    pad, sides = (
        pad_token(config),
        {name: config.get(f"{name}_side", "right") for name in ("truncation", "padding")},
    )
    asides = {
        name: "" if side == "right" else f", direction={side!r}" for name, side in sides.items()
    }
    graph, package = (
        served_file(min(rows, key=lambda row: row["latency_ms_p50"])),
        GRAPH_PACKAGES[engine],
    )
    code = GRAPH_SNIPPET.format(
        package=package,
        texts=json.dumps(EXAMPLE_TEXTS),
        longest=max_input_tokens(directory),
        cut=asides["truncation"],
        pad=pad,
        pad_id=Tokenizer.from_file(str(directory / "tokenizer.json")).token_to_id(pad),
        filled=asides["padding"],
        run=RUN_LINES[engine].format(graph=graph),
        decide=decision_line(about, "str(i)"),
    )
    others = f", here the fastest of {len(rows)} graphs" if len(rows) > 1 else ""
    return f"With `{package}` and `tokenizers`{others}:\n\n{code_block('python', code)}"


def use_section(directory: Path, rows: list[Row], about: dict[str, Any]) -> str:
    """How each shipped engine loads the model, in Python that runs in the artifact's folder."""
    by_engine = {
        engine: [row for row in rows if row["engine"] == engine] for engine in engines_of(rows)
    }
    parts = [
        torch_snippet(directory, about)
        if engine == "torch"
        else graph_snippet(directory, engine, found, about)
        for engine, found in by_engine.items()
    ]
    ours = (
        "With the `inference.py` that made it, whose folder is the current one or on `PYTHONPATH`; it takes the "
        "fastest form of the machine, refuses files that were changed, and labels whole files too "
        f"(`python inference.py --model DIR --input FILE --output FILE`):\n\n"
        f"{code_block('python', INFERENCE_SNIPPET.format(texts=json.dumps(EXAMPLE_TEXTS)))}"
    )
    return "\n\n".join(["Each block runs as it stands in this folder.", *parts, ours])


def limits_section(rows: list[Row], options: dict[str, Any], about: dict[str, Any]) -> str:
    """What the figures do not say."""
    tuned = any(row.get("thresholds") for row in rows)
    lines = [
        "No licence is given here: those of the teacher and of the data bind this model too, and are yours to check "
        "before you pass it on.",
        "It was trained on texts as people wrote them, offensive ones possibly among them, and on labels that people "
        "gave; it repeats their biases and their mistakes, and those of the teacher.",
        "Macro-F1 counts every label alike, however rare: look at the F1 of the labels that matter to you.",
        f"The figures are those of one test split of {about['split_rows']['test']:,} rows of one file; another split "
        "gives others, and the intervals say how far they may be.",
        "It knows the language and the kind of text of that file, and no other. Texts are cut after "
        f"{options['max_length']} tokens.",
        *(
            ["Decision thresholds were chosen on validation rows and are part of the weights."]
            if tuned
            else []
        ),
    ]
    return "\n".join(f"- {line}" for line in lines)


def write_card(
    directory: Path,
    references: list[Row],
    rows: list[Row],
    notes: list[str],
    options: dict[str, Any],
    about: dict[str, Any],
) -> None:
    """Write the card of the artifact in `directory`; `rows` are those of its forms, `references` those of the linear
    reference and the teacher, `notes` what the run found worth a line."""
    teacher = references[-1]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    made = f"{code_block('bash', about['command'])}\n\n{versions}. `results_final.json` holds every option and figure."
    sections = {
        "Data and labels": data_section(options, about),
        "Teacher and student": origin_section(teacher, options),
        "Results": results_section(rows, references, notes, options, about),
        "Use": use_section(directory, rows, about) if rows else "Nothing is here to be loaded.",
        "Limits": limits_section(rows, options, about),
        "How it was made": made,
    }
    parts = [
        f"# {escape_markdown(about['experiment'])}",
        summary(rows, teacher, about),
        *(f"## {title}\n\n{text}" for title, text in sections.items()),
    ]
    content = (
        f"---\n{metadata(rows, options, about).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    )
    ModelCard(content).save(directory / CARD)
