"""Label texts with a finished model: `load(DIR)(texts)` in Python, `python inference.py --model DIR ...` in a shell.

A form or number of threads that is not asked for is the fastest on this machine by measurement. Files that changed
since the model was made are refused, and nothing is ever unpickled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import engines
from compression_config import POSITIVE, Parser, UserError, file_errors
from console import is_disk_full, start_logging
from engines import engine_of, forms_in, longest_input, serving_files
from layouts import SUFFIXES, TABLES, Lines, text_fault
from scoring import Classifier, Progress, Summary, identity_of, score_file, score_lines
from selection import PACKAGES, SENTENCES, Unservable, available_cores, choose, versions

log = logging.getLogger(__name__)

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.joblib")
USUAL_TOKENS = 512  # read of a text where the tokenizer sets no limit
GO_WITH_INPUT = {"output": "-", "text_column": None, "format": None, "overwrite": False}  # option -> its default


def read_json(path: Path) -> dict:
    """A JSON object; UserError where the file is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"--model is {path.parent}, but must hold {path.name} as a JSON object")
    return found


def read_labels(model_dir: Path) -> tuple[tuple[str, ...], bool]:
    """The labels in the order of the logits, and whether several may hold at once."""
    config = read_json(model_dir / "config.json")
    names, multi_label = config.get("id2label") or {}, config.get("problem_type") == "multi_label_classification"
    labels = tuple(str(names.get(str(i))) for i in range(len(names)))
    classifies = config.get("problem_type") != "regression" and len(labels) >= (1 if multi_label else 2)
    if not classifies or len(set(labels)) < len(labels):
        raise UserError(f"--model is {model_dir}, but its config.json must name two labels or more in id2label, each "
                        "once")  # fmt: skip
    return labels, multi_label


def read_record(model_dir: Path) -> dict[str, Any]:
    """What stage.json tells of a model; nothing where there is none."""
    path = model_dir / "stage.json"
    return read_json(path) if path.exists() else {}


def servable_forms(model_dir: Path, engine: str) -> list[str]:
    """The forms of a directory that `engine` means and whose packages are installed; UserError where there is none."""
    if not model_dir.is_dir():
        raise UserError(f"--model is {model_dir}, but there is no such directory")
    held = [form for form in forms_in(model_dir) if form != "linear"]
    pickles = sorted(path.name for pattern in PICKLES for path in model_dir.glob(pattern))
    if not held and pickles:
        what = ("the linear reference, which is there for comparison; joblib.load reads it"
                if pickles[0] == "linear.joblib" else
                "a pickle, and loading a pickle runs the code in it; save the model as safetensors")  # fmt: skip
        raise UserError(f"--model is {model_dir}, but holds only {pickles[0]}, {what}")
    if not held:
        raise UserError(f"--model is {model_dir}, but must hold model.safetensors, onnx/*.onnx or openvino/*.xml")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        read_json(model_dir / name)
    meant = [form for form in held if engine in ("auto", form, engine_of(form))]
    if not meant:
        known = dict.fromkeys([*map(engine_of, held), *held])
        raise UserError(f"--engine is {engine}, but must be auto or what the model has: {', '.join(known)}")
    missing = {form: [name for name in PACKAGES[engine_of(form)] if find_spec(name) is None] for form in meant}
    if all(missing.values()):
        names = " ".join(missing[meant[0]])
        raise UserError(f"--engine is {engine}, but must have what serves {meant[0]}: pip install {names}")
    return [form for form in meant if not missing[form]]


def check_unchanged(model_dir: Path, form: str) -> str:
    """A digest of the files that serve a form; UserError where one is not what stage.json says."""
    found, record = {}, read_record(model_dir)
    for path in serving_files(model_dir, form):
        name = path.relative_to(model_dir).as_posix()
        if not path.is_file():
            raise UserError(f"--model is {model_dir}, but {form} needs {name}, which is not there")
        with path.open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        if record and record.get("files", {}).get(name) != found[name]:
            raise UserError(f"--model is {model_dir}, but {name} was changed since the model was made: its hash is not "
                            "the one in stage.json")  # fmt: skip
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def load_form(model_dir: Path, form: str, threads: int) -> Classifier:
    """One form, from files that are unchanged, that has answered a text; Unservable where it does not."""
    (labels, multi_label), fingerprint = read_labels(model_dir), check_unchanged(model_dir, form)
    if form == "torch" and (model_dir / "adapter_config.json").exists():
        raise UserError(f"--model is {model_dir}, but must not hold adapter_config.json: adapters may be pickles")
    try:
        engine = engines.load(model_dir, form, longest_input(model_dir) or USUAL_TOKENS, threads)
        answered = engine.forward(engine.encode(list(SENTENCES[:1]))).shape
    except Exception as error:  # each engine has its own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unservable(f"--engine is {form}, but that does not load: {reason}") from error
    if answered != (1, len(labels)):
        raise Unservable(f"--engine is {form}, but that gives {answered[-1]} logits for {len(labels)} labels")
    return Classifier(engine, labels, multi_label, form, threads, fingerprint)


def load(model_dir: Path | str, engine: str = "auto", threads: int | None = None) -> Classifier:
    """A form of `model_dir`, to be called with texts. `engine` is `auto`, `torch`, `onnx`, `openvino` or the path of
    a graph; the fastest of the forms that it means is taken, with `threads`, or one or all cores."""
    model_dir = Path(model_dir)
    forms = servable_forms(model_dir, engine)
    counts = [threads] if threads else sorted({1, available_cores()})
    candidates = [(form, number) for form in forms for number in counts]
    form, threads = choose(model_dir, candidates, read_record(model_dir).get("files", {}),
                           lambda *candidate: load_form(model_dir, *candidate).engine)  # fmt: skip
    return load_form(model_dir, form, threads)


def build_parser() -> Parser:
    """All flags, as text; `parse_options` converts and checks them."""
    parser = Parser(prog="inference.py", allow_abbrev=False, usage="inference.py --model DIR (TEXT ... | --input FILE "
                    "[options])", description="Label texts, or the rows of a file, with a finished model.")  # fmt: skip
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to label; a line each on stdout")
    parser.add_argument("--model", metavar="DIR", help="directory of the model, such as compressed_models/NAME")
    parser.add_argument("--input", metavar="FILE", help="file of texts; - is stdin")
    parser.add_argument("--output", metavar="FILE", default="-", help="file of the results; - is stdout (default: -)")
    parser.add_argument("--text_column", metavar="NAME", help="column of the texts (default: what the model learnt "
                        "from, the only one, or the one called text, comment, comments, tweet, content or "
                        "sentence)")  # fmt: skip
    parser.add_argument("--engine", metavar="NAME", default="auto", help="auto, torch, onnx, openvino or a graph such "
                        "as onnx/model_q4.onnx (default: auto, the fastest here)")  # fmt: skip
    parser.add_argument("--threads", metavar="INT", help="threads of the engine (default: one or all cores, whichever "
                        "is faster)")  # fmt: skip
    parser.add_argument("--batch", metavar="INT", default="32", help="most rows in a batch (default: 32)")
    parser.add_argument("--format", metavar="NAME", help="csv, tsv, jsonl or txt (default: by the suffix; stdin: txt)")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    return parser


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as far as can be without the model; UserError holds a line for each error."""
    options, errors = build_parser().parse_intermixed_args(argv), []
    for name in ("threads", "batch"):
        value = getattr(options, name)
        if value is not None and not (value.isdecimal() and len(value) < 10 and POSITIVE.holds(int(value))):
            errors.append(f"--{name} is {value}, but must be a whole number of at least 1")
        elif value is not None:
            setattr(options, name, int(value))
    if not options.model:
        errors.append("--model is not given, but must be the directory of a model")
    if options.input is None:
        errors += text_errors(options)
    else:
        errors += input_errors(options) + output_errors(options)
    if errors:
        raise UserError(*errors)
    return options


def text_errors(options: argparse.Namespace) -> list[str]:
    """Why the texts of the command line cannot be labelled."""
    errors = [f"--{name} is given, but goes with --input" for name, default in GO_WITH_INPUT.items()
              if getattr(options, name) != default]  # fmt: skip
    if not options.texts:
        errors.append("--input is not given, but without it there must be texts")
    for text in options.texts:
        if text_fault(text):
            errors.append(f"TEXT is {text!r}, but must be UTF-8 and not blank")
    return errors


def input_errors(options: argparse.Namespace) -> list[str]:
    """Why the input cannot be read; sets `format` where it is not given."""
    quote = "quote a file name that holds blanks"
    errors = [f"TEXT is given, but not together with --input; {quote}"] if options.texts else []
    if options.input != "-":
        errors += file_errors("--input", options.input)
    usual = "txt" if options.input == "-" else SUFFIXES.get(Path(options.input).suffix.lower())
    options.format = options.format or usual
    if options.format is None:
        errors.append(f"--input is {options.input}, but must end in {', '.join(SUFFIXES)}, or --format must be given")
    elif options.format not in TABLES:
        errors.append(f"--format is {options.format}, but must be one of {', '.join(TABLES)}")
    return errors


def output_errors(options: argparse.Namespace) -> list[str]:
    """Why the output cannot be written."""
    output, errors = Path(options.output), []
    if options.output == "-":
        return []
    if options.input != "-" and output.resolve() == Path(options.input).resolve():
        errors.append(f"--output is {output}, but must not be the input")
    elif output.is_dir():
        errors.append(f"--output is {output}, but that is a directory")
    elif output.exists() and not options.overwrite:
        errors.append(f"--output is {output}, but that file exists; --overwrite replaces it")
    elif not output.parent.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        errors.append(f"--output is {output}, but {output.parent} is no directory that can be written to")
    written = "csv" if options.format == "txt" else options.format
    if SUFFIXES.get(output.suffix.lower(), written) != written and options.format in TABLES:
        errors.append(f"--output is {output}, but {options.format} is written as {written}")
    return errors


def label_texts(options: argparse.Namespace) -> int:
    """Print a line a text: label, scores, text."""
    for text, answer in zip(options.texts, load(options.model, options.engine, options.threads)(options.texts),
                            strict=True):  # fmt: skip
        label = answer["label"] if isinstance(answer["label"], str) else "|".join(answer["label"]) or "-"
        scores = " ".join(f"{name}={score:.3f}" for name, score in answer["scores"].items())
        print(label, scores, " ".join(text.split()), sep="\t", flush=True)
    return 0


def open_input(name: str) -> AbstractContextManager[BinaryIO]:
    """The bytes of a file, or of stdin."""
    return nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb")


def score_input(options: argparse.Namespace) -> Summary:
    """Score the input to the output; nothing is written before the model is loaded and the columns are known."""
    model_dir = Path(options.model)
    servable_forms(model_dir, options.engine)
    with open_input(options.input) as stream:
        lines = Lines(stream)
        labels, _ = read_labels(model_dir)
        learnt = read_record(model_dir).get("text_column")
        table = TABLES[options.format](lines, options.format, options.text_column, learnt, labels, options.input)
        classifier = load(model_dir, options.engine, options.threads)
        log.info("engine: %s, threads: %d", classifier.form, classifier.threads)
        path = None if options.input == "-" else Path(options.input)
        if options.output == "-":
            size = path.stat().st_size if path else None
            return score_lines(classifier, table, lines, sys.stdout.buffer, options.batch, Progress(), lambda _: None,
                               size)  # fmt: skip
        identity = identity_of(path, classifier, table, options.batch, versions()) if path else None
        return score_file(classifier, table, lines, Path(options.output), options.batch, identity)


def label_file(options: argparse.Namespace) -> int:
    """Score a file and say what was done; 1 where there were rows and none could be scored."""
    done = score_input(options)
    progress, seconds = done.progress, max(done.seconds, 1e-9)
    earlier = f", {progress.scored - done.rows:,} of them earlier" if progress.scored > done.rows else ""
    log.info("%s rows scored%s, %s bad rows; %.0f texts/s, %.0f %% of the time in tokenization",
             f"{progress.scored:,}", earlier, f"{progress.bad:,}", done.rows / seconds,
             100 * done.tokenize_s / seconds)  # fmt: skip
    return 1 if progress.bad and not progress.scored else 0


def main(argv: list[str] | None = None) -> int:
    """Label what the command line names; stdout carries the results and nothing else."""
    options = argparse.Namespace(input=None, output="-")
    try:
        options = parse_options(argv)
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if options.threads == 1 else "true")
        start_logging()
        return label_texts(options) if options.input is None else label_file(options)
    except UserError as error:
        return error.tell("inference.py")
    except KeyboardInterrupt:
        again = "; the same command goes on from here" if "-" not in (options.input or "-", options.output) else ""
        print(f"inference.py: stopped{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read stdout has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if options.output == "-" or not is_disk_full(error, str(Path(options.output).parent)):
            raise
        print(f"inference.py: error: no space is left in {Path(options.output).parent}; free some space and give the "
              "same command again", file=sys.stderr)  # fmt: skip
        return 1


if __name__ == "__main__":
    sys.exit(main())
