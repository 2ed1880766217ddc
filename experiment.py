"""One run: what it reads, what it refuses, its folders, its repeats, and the results it ships."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

import export
import qat
import quantization
import report
from artifacts import (
    bundle_of,
    digest,
    drop_partial,
    file_digest,
    link_or_copy,
    rows_digest,
    sole_user,
    source_digest,
    versions,
    whole_or_absent,
    write_bundle,
    write_json,
    write_record,
)
from audit import audit, audit_table, token_sample
from audit import lines as audit_lines
from benchmark import machine
from card import write_card
from compression_config import (
    PIPELINES,
    DataOptions,
    LogOptions,
    Options,
    PlaceOptions,
    UserError,
    as_record,
    check_installed,
    command_line,
    narrow,
    own_knobs,
    read_config_file,
    write_config_file,
)
from console import kept_log
from data import label_array, split_rows, usable
from encoders import (
    Task,
    check_start,
    empty_encoder,
    ffn_width,
    is_fresh,
    knows_queries,
    shape_of,
    start_tokenizer,
    teacher_layer_ids,
)
from engines import serving_files
from evaluation import Form, fresh_process
from labelled import Labelled, read_labelled
from losses import KD_LOSSES
from ranks import is_first, join, process_count, told_by_first
from stages import Chain, add_times
from structure import feed_forward, width_asked
from threshold import check_tunable
from training import check_finished_teacher, check_reporting, resolve_device, resolve_precision
from uncertainty import interval_of_mean
from vocabulary import bare_backend

log = logging.getLogger(__name__)

HEADLINE = ("macro_f1", "accuracy", "delta_macro_f1")  # metrics with an interval


def reproducible(options: Options) -> dict[str, Any]:
    """The options that determine a run's result, set ones alone; not where it is put, nor what it says."""
    beside = {f.name for group in (PlaceOptions, LogOptions) for f in own_knobs(group)}
    return {name: value for name, value in as_record(options).items() if name not in beside and value is not None}


def differences(kept: dict[str, Any], ours: dict[str, Any]) -> str:
    """Options that differ, in words."""
    names = [name for name in {**kept, **ours} if kept.get(name) != ours.get(name)]
    return ", ".join(f"--{name} {kept.get(name)}, not {ours.get(name)}" for name in names)


def collect_errors(*checks: Callable[[], Any]) -> None:
    """Run every check, then raise one UserError with the lines of all that failed."""
    lines: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            lines += error.lines
    if lines:
        raise UserError(*dict.fromkeys(lines))


def check_processes(options: Options) -> None:
    """Refuse a batch that cannot be shared out evenly."""
    if options.batch % (process_count() * options.accumulate):
        raise UserError(f"--batch is {options.batch}, but must be a multiple of {process_count()} (processes) times "
                        f"{options.accumulate} (--accumulate)")  # fmt: skip


def check_student(options: Options) -> None:
    """Refuse a student that cannot be built from this teacher."""
    check_start(options.student_path, "--student_path", options.max_length)
    if options.student_path.startswith("teacher:"):
        teacher_layer_ids(options.student_path, shape_of(options.teacher_path, "--teacher_path", "num_hidden_layers"))
    if options.kd_method != "logit":
        check_states(options)
    if options.student_tokenizer == "teacher" and not is_fresh(options.student_path):
        raise UserError(f"--student_tokenizer is teacher, but --student_path {options.student_path} brings its own; "
                        "only a scratch:LxH student can take another")  # fmt: skip


def check_states(options: Options) -> None:
    """Refuse to compare states that are not known, of different tokens, or of different numbers of heads."""
    compared, of_teacher = KD_LOSSES[options.kd_method], options.student_path.startswith("teacher:")
    for flag in ("teacher_path",) if of_teacher else ("teacher_path", "student_path"):
        if {"attention", "relation"} & set(compared) and not knows_queries(getattr(options, flag), f"--{flag}"):
            raise UserError(f"--kd_method is {options.kd_method}, but which layers of --{flag} "
                            f"{getattr(options, flag)} make queries and keys is not known; use hidden or logit")
    if of_teacher:
        return
    if not same_tokens(options):
        raise UserError(f"--kd_method is {options.kd_method}, which compares token by token, but teacher and student "
                        "cut texts into different tokens; use logit, a --student_path teacher:N, or scratch:LxH with "
                        "--student_tokenizer teacher")  # fmt: skip
    ours, theirs = (shape_of(getattr(options, flag), f"--{flag}", "num_attention_heads")
                    for flag in ("student_path", "teacher_path"))  # fmt: skip
    if "attention" in compared and ours != theirs:
        raise UserError(f"--kd_method is {options.kd_method}, which compares head by head, but the student has {ours} "
                        f"heads and the teacher {theirs}; use hidden or relation")  # fmt: skip


def same_tokens(options: Options) -> bool:
    """Whether a student that is not made of the teacher's layers reads the teacher's tokens."""
    if is_fresh(options.student_path):
        return options.student_tokenizer == "teacher"
    if is_fresh(options.teacher_path):
        return False
    ours, theirs = (getattr(start_tokenizer(getattr(options, flag), f"--{flag}", [], options.max_length),
                            "backend_tokenizer", None) for flag in ("student_path", "teacher_path"))  # fmt: skip
    if ours is None or theirs is None:  # not of the tokenizers library
        return False
    for tokenizer in (ours, theirs):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return ours.to_str() == theirs.to_str()


def check_structure(options: Options) -> None:
    """Refuse to trim a tokenizer of another kind, or to narrow a feed-forward block that is narrower already."""
    of_student = "distill" in PIPELINES[options.pipeline] and not options.student_path.startswith("teacher:")
    flag = "student_path" if of_student else "teacher_path"
    spec = getattr(options, flag)
    if spec.startswith("scratch:") and not is_fresh(spec):
        return  # refused already
    cut_by = "teacher_path" if options.student_tokenizer == "teacher" else flag
    if options.trim_vocab != "none" and not is_fresh(getattr(options, cut_by)):
        bare_backend(start_tokenizer(getattr(options, cut_by), f"--{cut_by}", [], options.max_length))
    if options.ffn_width is None:
        return
    if is_fresh(spec):
        whole = shape_of(spec, f"--{flag}", "intermediate_size")
    else:
        model = empty_encoder(spec, f"--{flag}")
        feed_forward(model)
        whole = ffn_width(model.config)
    if (width := width_asked(options.ffn_width, whole)) > whole:
        raise UserError(f"--ffn_width is {width}, but {spec} has {whole} neurons a layer")


def tokenizers(options: Options, labelled: Labelled) -> dict[str, Any]:
    """The tokenizers that the run will use, as far as they exist before it; a fresh one is learnt from a sample."""
    texts = token_sample(labelled)
    found = {"teacher": start_tokenizer(options.teacher_path, "--teacher_path", texts, options.max_length)}
    shared = options.student_path.startswith("teacher:") or options.student_tokenizer == "teacher"
    if "distill" in PIPELINES[options.pipeline] and not shared:
        found["student"] = start_tokenizer(options.student_path, "--student_path", texts, options.max_length)
    return found


def with_sides(splits: DatasetDict, drifts: list[dict[str, Any]]) -> DatasetDict:
    """The splits, with a column `rows` in test that tells on which side of the widest drift a row stood."""
    if not drifts:
        return splits
    last = drifts[0]["last_row"]
    sides = [f"1-{last}" if row < last else f"{last + 1}-" for row in splits["test"]["id"]]
    return DatasetDict(splits | {"test": splits["test"].add_column("rows", sides)})


def mean_rows(rows: list[dict[str, Any]], test_share: float) -> list[dict[str, Any]]:
    """One row a stage, `repeat` = mean: means of all figures; for the headline metrics also the standard deviation
    (`_sd`) and, in place of the bootstrap's, the interval over repeats (`_low`, `_high`)."""
    means = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        same = [row for row in rows if row["stage"] == stage]
        mean = dict(same[0]) | {"repeat": "mean"}
        for name, value in same[0].items():
            numbers = [row.get(name) for row in same]
            if isinstance(value, int | float) and not isinstance(value, bool) and None not in numbers:
                mean[name] = sum(numbers) / len(numbers)
        for name in HEADLINE:
            found = interval_of_mean([row[name] for row in same], test_share)
            mean |= dict(zip((name, f"{name}_sd", f"{name}_low", f"{name}_high"), found, strict=True))
        means.append(mean)
    return means


def learner(runs: list[Options]) -> Options:
    """The first run that distils, else the first."""
    return max(runs, key=lambda one: "distill" in PIPELINES[one.pipeline])


def checked(runs: list[Options]) -> Labelled:
    """The labelled file of runs that differ in their pipelines; refuses, all at once, what would fail after hours of
    training."""
    options, stages = learner(runs), {stage for one in runs for stage in PIPELINES[one.pipeline]}
    shaped = {("distill" in PIPELINES[one.pipeline], one.ffn_width): one for one in runs}
    checks = [lambda: check_processes(options),
              lambda: check_start(options.teacher_path, "--teacher_path", options.max_length),
              lambda: resolve_precision(options.precision, resolve_device(options.device))]  # fmt: skip
    if "distill" in stages:
        checks.append(lambda: check_student(options))
    checks += [lambda one=one: check_structure(one) for one in shaped.values()]
    checks.append(lambda: check_reporting(options.report_to))
    if "quantize" in stages:
        checks.append(lambda: check_installed("--quant_method", options.quant_method,
                                              quantization.REQUIREMENTS[options.quant_method]))  # fmt: skip
    checks += [lambda bits=bits: check_installed("--qat", bits, qat.REQUIREMENTS[bits]) for bits in
               {one.qat for one in runs}]  # fmt: skip
    checks.append(lambda: check_installed("--export", options.export, export.required(options.export)))
    found: list[Labelled] = []
    checks.append(lambda: found.append(read_labelled(narrow(options, DataOptions))))
    collect_errors(*checks)
    (labelled,) = found
    if options.teacher_epochs == 0:
        check_finished_teacher(options.teacher_path, labelled.task)
    if options.tune_threshold:
        check_tunable(labelled.task)
    return labelled


def with_student(runs: list[Options]) -> list[Options]:
    """The runs with a student; says where one is given in vain."""
    first = learner(runs)
    if first.student_path is None:
        return [replace(one, student_path="teacher:2") for one in runs]
    if "distill" not in PIPELINES[first.pipeline]:
        log.warning("--student_path %s is not used: %s has no distillation", first.student_path,
                    " or ".join(one.pipeline for one in runs))  # fmt: skip
    return runs


def resolve(options: Options, columns: dict[str, Any]) -> Options:
    """Every `auto` and every unset default replaced by what it stands for."""
    device = resolve_device(options.device)
    student_is_fresh = is_fresh(options.student_path) or (
        is_fresh(options.teacher_path) and options.student_path.startswith("teacher:"))  # fmt: skip
    learner_is_fresh = student_is_fresh if "distill" in PIPELINES[options.pipeline] else is_fresh(options.teacher_path)
    return replace(
        options, **columns, device=device, precision=resolve_precision(options.precision, device),
        teacher_lr=options.teacher_lr or (5e-4 if is_fresh(options.teacher_path) else 5e-5),
        lr=options.lr or (5e-4 if learner_is_fresh else 5e-5),
    )  # fmt: skip


def repeats(options: Options) -> list[tuple[str, Options, int | None]]:
    """(name, options, fold) of each repeat: the folds, the seeds, or the one run."""
    if options.num_folds:
        return [(f"fold {fold + 1}", options, fold) for fold in range(options.num_folds)]
    seeds = [(f"seed {seed}", replace(options, seed=seed), None) for seed in options.seeds or ()]
    return seeds or [("", options, None)]


@contextmanager
def open_experiments(runs: list[Options]) -> Iterator[list["Experiment"]]:
    """Check everything, read the data, and give an experiment for each run; they differ in their pipelines alone. The
    measuring process ends with the block."""
    commands = [command_line(one) for one in runs]
    with ExitStack() as stack:
        log_to = stack.enter_context(kept_log())
        runs = with_student(runs)
        labelled = checked(runs)
        columns = {"text_column": labelled.text, "label_columns": labelled.label_columns}
        runs = [resolve(one, columns) for one in runs]
        join(runs[0].device)
        experiments = experiments_of(labelled, runs, commands)
        chains = [chain for experiment in experiments for chain in experiment.chains]
        told_by_first(lambda: [stack.enter_context(sole_user(experiment.directory)) for experiment in experiments])
        elsewhere = stack.enter_context(fresh_process())
        for chain in chains:
            chain.elsewhere = elsewhere
        told_by_first(lambda: open_all(experiments, log_to))
        yield experiments
        for chain in chains if is_first() and not runs[0].audit else ():
            drop_partial(chain.directory)


def experiments_of(labelled: Labelled, runs: list[Options], commands: list[str]) -> list["Experiment"]:
    """An experiment for each run; the file is split and audited once."""
    kept = usable(labelled)
    splits = [split_rows(kept, narrow(one, DataOptions), fold) for _, one, fold in repeats(runs[0])]
    found = audit(labelled, splits[0], tokenizers(learner(runs), labelled), runs[0].max_length)
    splits = [with_sides(one, found["order_drift"]) for one in splits]
    return [Experiment(one, labelled, splits, found, command) for one, command in zip(runs, commands, strict=True)]


def open_all(experiments: list["Experiment"], log_to: Callable[..., None]) -> None:
    """Open the folders of all experiments; the log goes into each."""
    for experiment in experiments:
        experiment.open()
    log_to(*(experiment.log_path for experiment in experiments))
    for experiment in experiments:
        log.info("experiment %s, logged in %s: %s", experiment.options.experiment, experiment.log_path,
                 experiment.command)  # fmt: skip
    experiments[0].tell_audit()


def finish(experiments: list["Experiment"]) -> list[list[dict[str, Any]]]:
    """The rows of each experiment, all timed in one benchmark; ships every final model, and says in words what must
    not be missed. Times are those of the first repeat: the others have the same shapes, or nearly (where a vocabulary
    is trimmed to other texts)."""
    add_times([experiment.chains[0] for experiment in experiments])
    results = [experiment.results() for experiment in experiments]
    for line in by_pipeline(experiments, [report.verdicts(rows) for rows in results]):
        log.warning("note: %s", line)
    for experiment, rows in zip(experiments, results, strict=True):
        experiment.ship(rows)
    return results


def by_pipeline(experiments: list["Experiment"], lines: list[list[str]]) -> list[str]:
    """The lines of all experiments, each with its pipeline where there are several."""
    return [f"{one.options.pipeline}: {line}" if len(experiments) > 1 else line
            for one, own in zip(experiments, lines, strict=True) for line in own]  # fmt: skip


def plain_stem(path: str) -> str:
    """A file's name without its suffixes and without what means something to a shell."""
    stem = Path(path).name.split(".")[0]
    return "".join(c if c.isalnum() or c == "-" or c > "\x7f" and not c.isspace() else "_" for c in stem)


def link_forms(forms: list[Form], target: Path) -> None:
    """Hard-link what serving the forms needs into one folder, with the graphs' tokenizer, which is written without
    blanks, and the config of the torch form, which may say how it is quantized."""
    for form in sorted(forms, key=lambda form: form.engine == "torch"):
        for file in serving_files(form.path, form.served):
            place = target / file.relative_to(form.path)
            if place.name == "config.json":
                place.unlink(missing_ok=True)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, place)


def label_counts(split: Dataset, task: Task) -> dict[str, int]:
    """Label -> how many rows of a split have it."""
    labels = label_array(split)
    counts = labels.sum(axis=0) if task.multi_label else np.bincount(labels, minlength=len(task.labels))
    return {name: int(count) for name, count in zip(task.labels, counts, strict=True)}


class Experiment:
    """The folders `models/<name>/` and `compressed_models/<name>/`, and a chain of stages for every repeat."""

    def __init__(
        self, options: Options, labelled: Labelled, splits: list[DatasetDict], found: dict[str, Any], command: str
    ):
        self.labelled, self.task, self.audit, self.command = labelled, labelled.task, found, command
        self.options = replace(options, experiment=options.experiment or self.default_name(options, splits))
        models = Path(options.output_dir) / "models"
        self.directory = models / self.options.experiment
        self.log_path = self.directory / "run.log"
        self.artifact = Path(options.output_dir) / "compressed_models" / self.options.experiment
        self.chains = [Chain(name, self.directory / name.replace(" ", "_"), models, one, rows, self.task)
                       for (name, one, _), rows in zip(repeats(options), splits, strict=True)]  # fmt: skip

    def default_name(self, options: Options, splits: list[DatasetDict]) -> str:
        """Pipeline, data set and six digits of what determines the run."""
        rows = [rows_digest(split) for one in splits for split in one.values()]
        files = [file_digest(Path(path)) for path in (options.unlabeled_path,) if path]
        run = [reproducible(options), rows, self.task.labels, source_digest(options.teacher_path), files]
        return f"{options.pipeline}_{plain_stem(options.dataset_path)}_{digest(run)[:6]}"

    def open(self) -> None:
        """Keep the options, the audit and the rows of every split; refuse a folder that holds other options."""
        kept, ours = self.directory / "config.yaml", reproducible(self.options)
        unset = reproducible(Options())  # what a file of an earlier version lacks
        differing = differences(unset | read_config_file(kept), ours) if kept.is_file() else ""
        if differing and not self.options.overwrite:
            raise UserError(f"--experiment {self.options.experiment} holds a run with other options ({differing}); "
                            "give another name, or --overwrite")  # fmt: skip
        for chain in self.chains:
            chain.write_splits()
        write_config_file(kept, ours)
        write_json(self.directory / "audit.json", self.audit)

    def tell_audit(self) -> None:
        """Log what was read and found, unless it is what the run prints."""
        if not self.options.audit:
            log.info("%s: text %r, labels %s: %s\n%s", self.options.dataset_path, self.labelled.text,
                     ", ".join(map(repr, self.labelled.label_columns)),
                     "/".join(self.task.labels), audit_table(self.audit))  # fmt: skip

    def run(self) -> None:
        """Every stage of every repeat."""
        log.info("experiment %s", self.options.experiment)
        for chain in self.chains:
            chain.run()

    def results(self) -> list[dict[str, Any]]:
        """All rows, the linear reference first, with ratios and the mean of repeats."""
        rows = [row for chain in self.chains for row in chain.finished_rows()]
        if len(self.chains) > 1:
            splits = self.chains[0].splits
            rows += mean_rows(rows, len(splits["test"]) / len(splits["train"]))
        return rows

    @property
    def shipped_rows(self) -> list[dict[str, Any]]:
        """The rows of the repeat whose models are shipped."""
        return list(self.chains[0].rows.values())

    def about(self) -> dict[str, Any]:
        """What results and card tell beside options and rows."""
        first = self.chains[0]
        counts = {name: label_counts(split, self.task) for name, split in first.splits.items()}
        return {"experiment": self.options.experiment, "shipped": first.name or "the one run", "command": self.command,
                "labels": self.task.labels, "problem_type": self.task.problem_type,
                "split_rows": first.splits.num_rows, "label_rows": counts, "machine": machine(),
                "versions": versions()}  # fmt: skip

    def ship(self, rows: list[dict[str, Any]]) -> None:
        """Put the first repeat's final model and the results into `compressed_models/<name>/`."""
        first = self.chains[0]
        bundle_of(self.artifact).unlink(missing_ok=True)
        with whole_or_absent(self.artifact, "new") as partial:
            forms = first.shipped()
            link_forms(forms, partial)
            shipped = {form.name: form.served for form in forms}
            write_record(partial, stage="artifact", fingerprint=digest([self.options.experiment, "artifact"]),
                         forms=shipped, text_column=self.options.text_column)  # fmt: skip
            about, options = self.about(), as_record(self.options)
            report.write_results(partial, rows, options, about)
            report.write_page(partial, audit_lines(self.audit), with_examples=not self.options.no_examples)
            of_first = {row["stage"]: row for row in report.of_repeat(rows, first.name)}
            references = [of_first[name] for name in ("linear", "teacher")]
            write_card(partial, references, [of_first[name] for name in shipped],
                       report.verdicts(list(of_first.values())), options, about)  # fmt: skip
        bundle = write_bundle(self.artifact)
        which = f" ({first.name})" if first.name else ""
        log.info("the final model%s and its results are in %s; packed, %.2f MB, in %s", which, self.artifact,
                 bundle.stat().st_size / 1e6, bundle.name)  # fmt: skip
