"""What a mistyped option, value or column was probably meant to be. Standard library only."""

from collections.abc import Iterable
from difflib import get_close_matches

SIMILARITY = 0.8  # of `difflib`, from 0 to 1: one wrong letter in five

ALIASES = {  # option of another tool -> the options here
    "learning_rate": ("lr", "teacher_lr"),
    "num_train_epochs": ("epochs", "teacher_epochs"),
    "num_epochs": ("epochs", "teacher_epochs"),
    "n_epochs": ("epochs", "teacher_epochs"),
    "student_epochs": ("epochs",),
    "batch_size": ("batch",),
    "train_batch_size": ("batch",),
    "per_device_train_batch_size": ("batch",),
    "per_device_eval_batch_size": ("batch",),
    "gradient_accumulation_steps": ("accumulate",),
    "model": ("teacher_path",),
    "model_name": ("teacher_path",),
    "model_name_or_path": ("teacher_path",),
    "pretrained_model_name_or_path": ("teacher_path",),
    "teacher": ("teacher_path",),
    "teacher_model": ("teacher_path",),
    "student": ("student_path",),
    "student_model": ("student_path",),
    "data": ("dataset_path",),
    "dataset": ("dataset_path",),
    "dataset_name": ("dataset_path",),
    "data_path": ("dataset_path",),
    "file": ("dataset_path",),
    "input": ("dataset_path",),
    "train_file": ("dataset_path",),
    "train_path": ("dataset_path",),
    "validation_file": ("validation_path",),
    "eval_file": ("validation_path",),
    "dev_file": ("validation_path",),
    "test_file": ("test_path",),
    "text": ("text_column",),
    "text_column_name": ("text_column",),
    "label": ("label_columns",),
    "labels": ("label_columns",),
    "label_column_name": ("label_columns",),
    "target": ("label_columns",),
    "target_column": ("label_columns",),
    "id2label": ("label_names",),
    "class_names": ("label_names",),
    "max_seq_length": ("max_length",),
    "max_seq_len": ("max_length",),
    "max_len": ("max_length",),
    "temperature": ("kd_temperature",),
    "alpha": ("kd_alpha",),
    "sparsity": ("prune_sparsity",),
    "quantization": ("quant_method",),
    "quantize": ("quant_method",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "no_cuda": ("device",),
    "random_seed": ("seed",),
    "random_state": ("seed",),
    "folds": ("num_folds",),
    "n_splits": ("num_folds",),
    "patience": ("early_stopping_patience",),
    "val_split": ("validation_fraction",),
    "test_size": ("test_fraction",),
    "name": ("experiment",),
    "run_name": ("experiment",),
    "output": ("output_dir",),
    "out_dir": ("output_dir",),
    "overwrite_output_dir": ("overwrite",),
}


def folded(word: str) -> str:
    """A word in lower case, with underscores in place of dashes and spaces."""
    return word.casefold().replace("-", "_").replace(" ", "_")


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that a word was probably meant to be; None if no name is similar."""
    name_of = {}
    for name in names:
        name_of.setdefault(folded(name), name)
    matches = get_close_matches(folded(word), name_of, 1, SIMILARITY)
    return name_of[matches[0]] if matches else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """`; did you mean NAME?` for the most similar name; empty if no name is similar."""
    name = closest(word, names)
    return f"; did you mean {name}?" if name else ""


def option_suggestion(name: str, options: Iterable[str]) -> str:
    """The same for an option, without its dashes; options of other tools are known as well."""
    options = tuple(options)
    meant = [other for other in ALIASES.get(folded(name), ()) if other in options]
    if not meant:
        nearest = closest(name, options)
        if nearest is None:
            return ""
        meant = [nearest]
    return f"; did you mean {' or '.join(f'--{other}' for other in meant)}?"
