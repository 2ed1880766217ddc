"""The model card: `README.md` of a shipped model, with metadata for the Hugging Face Hub. No torch.

Names of files, columns and labels come from users. They are put on one line and escaped before they
reach the template, so that they break neither YAML nor Markdown. The card makes no claim about the
license, which is unknown.
"""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from compression_config import PIPELINES
from reporting.markdown import code_block, escape_markdown, markdown_from_cells, one_line
from reporting.results import (
    Row,
    difference_cell,
    is_timed,
    is_unmeasurable,
    size_and_latency,
    speed_cells,
    speedup_cell,
)
from reporting.snippets import engines_of, snippets_of, weights_file
from runtime.errors import escape_unprintable

CARD_NAME = "README.md"
CARD_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"

TAGS = {
    "distill": "knowledge-distillation",
    "prune": "pruning",
    "quantize": "quantization",
}
PRUNED_LAYERS = {  # --prune_layers -> in words
    "all": "the encoder's Linear layers",
    "attention": "the attention's Linear layers",
    "ffn": "the feed-forward blocks",
}
MAX_EXAMPLE_CHARACTERS = 120
PATH_OPTIONS = ("dataset_path", "validation_path", "test_path", "unlabeled_path")


def is_hub_name(spec: str) -> bool:
    """Whether an option that names a model is a name on the hub."""
    try:
        validate_repo_id(spec)
    except HFValidationError:
        return False
    return not Path(spec).is_dir()


def base_models(options: dict[str, Any]) -> list[str]:
    """The hub models that this one was made from: teacher and, if distilled, the student's
    start."""
    specs = [options["teacher_path"]]
    if "distill" in PIPELINES[options["pipeline"]]:
        specs.append(options["student_path"])
    return [spec for spec in dict.fromkeys(specs) if is_hub_name(spec)]


def eval_results(rows: list[Row], options: dict[str, Any]) -> list[EvalResult]:
    """Macro-F1 and accuracy of every row on the test split, as metadata of the hub."""
    dataset = {
        "task_type": "text-classification",
        "task_name": "Text Classification",
        "dataset_split": "test",
        "dataset_name": one_line(Path(options["dataset_path"]).name),
        "dataset_type": "text",
    }
    results = []
    for row in rows:
        macro_f1 = EvalResult(
            **dataset,
            metric_type="f1",
            metric_value=row["macro_f1"],
            metric_name=f"macro-F1, {row['stage']}",
            metric_args={"average": "macro"},
        )
        accuracy = EvalResult(
            **dataset,
            metric_type="accuracy",
            metric_value=row["accuracy"],
            metric_name=f"accuracy, {row['stage']}",
        )
        results += [macro_f1, accuracy]
    return results


def library_name(engines: list[str]) -> str | None:
    """The library that the hub shows: transformers if it loads the model, else the first engine."""
    if "torch" in engines:
        return "transformers"
    return engines[0] if engines else None


def card_metadata(rows: list[Row], options: dict[str, Any], name: str) -> ModelCardData:
    """The metadata of the hub: task, library, base models, tags, and results on the test split."""
    results = eval_results(rows, options)
    engines = engines_of(rows)
    tags = ["model-compression"]
    tags += [TAGS[step] for step in PIPELINES[options["pipeline"]]]
    tags += [engine for engine in engines if engine != "torch"]
    return ModelCardData(
        library_name=library_name(engines),
        pipeline_tag="text-classification",
        base_model=base_models(options) or None,
        metrics=["f1", "accuracy"],
        tags=tags,
        model_name=one_line(name) if results else None,
        eval_results=results or None,
    )


def escaped_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options with all strings escaped for Markdown, and data files by name only."""
    escaped = {}
    for name, value in options.items():
        if name in PATH_OPTIONS and value:
            escaped[name] = escape_markdown(Path(value).name)
        elif isinstance(value, str):
            escaped[name] = escape_markdown(value)
        elif isinstance(value, list | tuple):
            escaped[name] = [escape_markdown(part) for part in value]
        else:
            escaped[name] = value
    return escaped


def interval_text(row: Row, metric: str) -> str:
    """A metric with its 95 % confidence interval."""
    low = row[f"{metric}_low"]
    high = row[f"{metric}_high"]
    return f"{row[metric]:.4f} [{low:.4f}, {high:.4f}]"


def label_table(about: dict[str, Any], examples: dict[str, str]) -> str:
    """How many rows of each split have each label, and a text of it if there are examples."""
    splits = about["split_rows"]
    lines = [["label", *(f"{split} rows" for split in splits)]]
    for label in about["labels"]:
        counts = [f"{about['label_rows'][split][label]:,}" for split in splits]
        lines.append([escape_markdown(label), *counts])
    lines.append(["all rows", *(f"{count:,}" for count in splits.values())])
    if examples:
        lines[0].append("example from the test rows")
        for label, line in zip(about["labels"], lines[1:-1], strict=True):
            line.append(escape_markdown(shortened_example(examples.get(label, ""))))
        lines[-1].append("")
    return markdown_from_cells(lines)


def shortened_example(text: str) -> str:
    """A text of at most MAX_EXAMPLE_CHARACTERS, which ends in [...] if it was cut."""
    if len(text) <= MAX_EXAMPLE_CHARACTERS:
        return text
    return f"{text[:MAX_EXAMPLE_CHARACTERS]} [...]"


def results_table(formats: list[Row], included: list[Row]) -> str:
    """Size, speed and quality of each format; those not among `included` have no file here."""
    headings = [
        "format",
        "file",
        "MB",
        "smaller",
        "ms per text",
        "faster",
        "macro-F1",
        "vs teacher (points)",
        "accuracy",
        "agreement",
    ]
    lines = [headings]
    for row in formats:
        cells = [
            f"`{row['stage']}`",
            f"`{weights_file(row)}`" if row in included else "not included",
            f"{row['size_mb']:.2f}",
            f"{row['compression_ratio']:.2f}x",
            f"{row['latency_ms_p50']:.2f}" if is_timed(row) else "",
            speedup_cell(row),
            interval_text(row, "macro_f1"),
            difference_cell(row),
            interval_text(row, "accuracy"),
            f"{row['agreement']:.4f}",
        ]
        lines.append(cells)
    return markdown_from_cells(lines)


def f1_text(value: float | None) -> str:
    """An F1 with four digits, or `-` if there is none."""
    return "-" if value is None else f"{value:.4f}"


def speed_table(formats: list[Row]) -> str:
    """Times, throughput and memory of each format."""
    head, *lines = speed_cells(formats)
    return markdown_from_cells([head, *([f"`{name}`", *cells] for name, *cells in lines)])


def f1_table(formats: list[Row], labels: list[str]) -> str:
    """The F1 of each label for each format; `-` for a label without test rows."""
    lines = [["F1 of", *(f"`{row['stage']}`" for row in formats)]]
    for label in labels:
        values = [f1_text(row.get(f"f1.{label}")) for row in formats]
        lines.append([escape_markdown(label), *values])
    return markdown_from_cells(lines)


def remarks_of(formats: list[Row], notes: list[str]) -> list[str]:
    """Labels that a format never predicts, and the notes of the run, escaped."""
    remarks = []
    for row in formats:
        if row.get("never_predicted"):
            labels = escape_markdown(row["never_predicted"])
            remarks.append(f"`{row['stage']}` never predicts on the test rows: {labels}.")
    remarks += [f"Note: {escape_markdown(note)}." for note in notes]
    return remarks


def write_card(
    directory: Path,
    baselines: list[Row],
    rows: list[Row],
    notes: list[str],
    options: dict[str, Any],
    about: dict[str, Any],
    examples: dict[str, str],
) -> None:
    """Write the card of the shipped model in `directory`.

    `baselines` are the rows of the linear baseline and the teacher, `rows` those of the shipped
    formats, `notes` the warnings of the run, `examples` a text of each label, or none.
    """
    _, teacher = baselines
    multi_label = about["problem_type"] == "multi_label_classification"
    smallest = min(rows, key=itemgetter("bytes"), default=None)
    formats = baselines + [row for row in rows if row["stage"] != "teacher"]
    versions = [f"{name} {version}" for name, version in about["versions"].items()]
    card = ModelCard.from_template(
        card_metadata(rows, options, about["experiment"]),
        template_path=str(CARD_TEMPLATE),
        name=escape_markdown(about["experiment"]),
        multi_label=multi_label,
        problem_type=about["problem_type"],
        num_labels=len(about["labels"]),
        test_rows=about["split_rows"]["test"],
        smallest=smallest,
        smallest_cost=size_and_latency(smallest) if smallest else "",
        teacher_cost=size_and_latency(teacher),
        is_timed=is_timed(teacher),
        difference=difference_cell(smallest) if smallest else "",
        unmeasurable=bool(smallest) and is_unmeasurable(smallest),
        teacher=teacher,
        teacher_f1=interval_text(teacher, "macro_f1"),
        options=escaped_options(options),
        other_paths=[name for name in PATH_OPTIONS[1:] if options[name]],
        steps=PIPELINES[options["pipeline"]],
        pruned_layers=PRUNED_LAYERS[options["prune_layers"]],
        label_table=label_table(about, examples),
        results_table=results_table(formats, rows),
        speed_table=speed_table(formats),
        f1_table=f1_table(formats, about["labels"]),
        remarks=remarks_of(formats, notes),
        machine=escaped_options(about["machine"]),
        on_gpu=options["device"] == "cuda",
        repeat=escape_markdown(teacher.get("repeat", "")),
        snippets=snippets_of(directory, rows, multi_label=multi_label),
        has_thresholds=any(row.get("thresholds") for row in rows),
        command=code_block("bash", escape_unprintable(about["command"])),
        versions=one_line(", ".join(versions)),
    )
    card.content = card.content.rstrip("\n") + "\n"
    card.save(directory / CARD_NAME)
