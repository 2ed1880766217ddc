"""From a labelled file to leakage-free splits.

The text that models read is the raw text; the normalised text is only a key, by which copies of one text
are kept on one side of every split and texts with contradicting labels are dropped.
"""

import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from sklearn.model_selection import train_test_split
from transformers import PreTrainedTokenizerBase

from compression_config import DataOptions, UserError
from encoders import Task

log = logging.getLogger(__name__)

SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
               "val": "validation", "dev": "validation", "test": "test"}  # fmt: skip
MOST_CLASSES = 50


def read_table(path: str) -> pd.DataFrame:
    """The CSV file as a table; UserError in one line where it is missing, empty or no CSV."""
    if not Path(path).is_file():
        raise UserError(f"--dataset_path is {path}, but there is no such file")
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", dtype_backend="numpy_nullable")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"--dataset_path is {path}, but it cannot be read as UTF-8 CSV: {error}") from error
    if table.empty:
        raise UserError(f"--dataset_path is {path}, but it holds no rows")
    return table


def is_text(column: pd.Series) -> bool:
    """Whether a column holds strings most of which differ."""
    return pd.api.types.is_string_dtype(column) and column.nunique() > 0.5 * column.notna().sum()


def is_label(column: pd.Series) -> bool:
    """Whether a column holds a few repeated values."""
    return 2 <= column.nunique() <= min(MOST_CLASSES, 0.5 * column.notna().sum())


def is_flag(column: pd.Series) -> bool:
    """Whether a column holds 0 and 1 alone (or empties)."""
    return pd.api.types.is_numeric_dtype(column) and set(column.dropna().unique()) <= {0, 1}


def has_splits(table: pd.DataFrame) -> bool:
    """Whether the file carries its own split: a column `split` of train / validation / test."""
    return "split" in table and set(table["split"].dropna().str.lower()) <= set(SPLIT_NAMES)


def find_text_column(table: pd.DataFrame, asked: str | None) -> str:
    """The column with the texts, asked for or the only candidate."""
    if asked is not None:
        return known_column(table, asked, "--text_column")
    candidates = [name for name in table if is_text(table[name])]
    if len(candidates) != 1:
        found = f"several candidates ({', '.join(candidates)})" if candidates else f"none among {', '.join(table)}"
        raise UserError(f"--text_column is needed: the file has {found}")
    return candidates[0]


def known_column(table: pd.DataFrame, name: str, flag: str) -> str:
    """`name`, refused where the file has no such column."""
    if name not in table:
        raise UserError(f"{flag} is {name}, but the file has the columns {', '.join(table)}")
    return name


def find_label_columns(table: pd.DataFrame, asked: Sequence[str] | None, text: str) -> list[str]:
    """One label column, or several 0/1 columns; asked for, or the only reading of the file."""
    if asked:
        return [known_column(table, name, "--label_columns") for name in asked]
    skipped = {text} | ({"split"} if has_splits(table) else set())
    candidates = [name for name in table if name not in skipped and is_label(table[name])]
    if len(candidates) == 1 or (candidates and all(is_flag(table[name]) for name in candidates)):
        return candidates
    found = f"several candidates ({', '.join(candidates)})" if candidates else f"none among {', '.join(table)}"
    raise UserError(f"--label_columns is needed: the file has {found}")


def label_text(value: object) -> str:
    """A label value as its name: 1.0 and 1 are both `1`."""
    return str(int(value)) if isinstance(value, (int, float, np.number)) and float(value).is_integer() else str(value)


def text_key(text: str) -> str:
    """The key by which texts are the same: NFC, white space folded."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def labelled_rows(path: str, table: pd.DataFrame, text: str, labels: list[str]) -> pd.DataFrame:
    """Rows that have a text and every label: `id` (row of the file), `text`, `key`, `split`, `label:<name>`."""
    rows = pd.DataFrame({"id": np.arange(len(table)), "text": table[text].astype("string")})
    rows = rows.join(table[labels].rename(columns={name: f"label:{name}" for name in labels}))
    rows["split"] = table["split"].str.lower().map(SPLIT_NAMES) if has_splits(table) else None
    blank = rows["text"].fillna("").str.strip() == ""
    missing = blank | table[labels].isna().any(axis=1)
    if missing.mean() > 0.5:
        raise UserError(f"--dataset_path is {path}, but {missing.sum()} of {len(rows)} rows lack a text or a label")
    if missing.any():
        log.warning("%d rows without text or label are dropped, first row %d", missing.sum(), missing.idxmax() + 2)
    rows = rows[~missing].reset_index(drop=True)
    rows["key"] = [text_key(value) for value in rows["text"]]
    return rows


def read_task(rows: pd.DataFrame, labels: list[str]) -> tuple[Task, pd.Series]:
    """The task, and each row's label: a class id, or a list of 0.0/1.0, one per label."""
    columns = rows[[f"label:{name}" for name in labels]]
    if len(labels) > 1:
        for name in labels:
            if not is_flag(rows[f"label:{name}"]):
                raise UserError(f"--label_columns names {name}, but several label columns must hold 0 and 1 alone")
        return Task(tuple(labels), True), pd.Series(columns.to_numpy(float).tolist(), index=rows.index)
    values = columns.iloc[:, 0]
    names = [label_text(value) for value in sorted(values.unique())]
    if not 2 <= len(names) <= MOST_CLASSES:
        raise UserError(f"--label_columns is {labels[0]} with {len(names)} values, but needs 2 to {MOST_CLASSES}")
    return Task(tuple(names), False), values.map(label_text).map({name: i for i, name in enumerate(names)}).astype(int)


def drop_contradictions(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose text carries one label only."""
    variants = rows["label"].astype(str).groupby(rows["key"]).transform("nunique")
    if (variants > 1).any():
        log.warning("%d rows are dropped: %d texts carry contradicting labels", (variants > 1).sum(),
                    rows.loc[variants > 1, "key"].nunique())  # fmt: skip
    return rows[variants == 1]


def hold_out(texts: pd.DataFrame, fraction: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rest, held out): `fraction` of distinct texts, stratified by label; rare label combinations together."""
    strata = texts["label"].astype(str)
    strata = strata.where(strata.map(strata.value_counts()) >= 10, "rare") if texts["label"].dtype == object else strata
    if strata.value_counts().min() < 2:
        strata = strata.replace("rare", strata.mode()[0])
    try:
        return train_test_split(texts, test_size=fraction, random_state=seed, stratify=strata)
    except ValueError as error:
        rarest = strata.value_counts()
        raise UserError(f"--label_columns: label {rarest.index[-1]} has {rarest.iloc[-1]} texts, too few to hold out "
                        f"{fraction:.0%} of {len(texts)}") from error  # fmt: skip


def assign_splits(rows: pd.DataFrame, options: DataOptions) -> pd.Series:
    """`train`, `validation` or `test` for each row: the file's own where given, the rest drawn by distinct text."""
    texts = rows.drop_duplicates("key")[["key", "label", "split"]]
    test, validation = texts[texts["split"] == "test"], texts[texts["split"] == "validation"]
    rest = texts[~texts["split"].isin(["test", "validation"])]
    of_rest = options.validation_fraction
    if test.empty:
        rest, test = hold_out(rest, options.test_fraction, options.seed)
        of_rest = options.validation_fraction / (1 - options.test_fraction)
    if validation.empty:
        rest, validation = hold_out(rest, of_rest, options.seed)
    split_of = dict.fromkeys(validation["key"], "validation") | dict.fromkeys(test["key"], "test")
    return rows["key"].map(split_of).fillna("train")


def drop_leaks(rows: pd.DataFrame) -> pd.DataFrame:
    """Where the file's own split repeats a text, keep it in test before validation before training."""
    rank = rows["split"].map({"test": 0, "validation": 1}).fillna(2)
    leaked = rank > rank.groupby(rows["key"]).transform("min")
    if leaked.any():
        log.warning("%d rows are dropped: their text is also in a held-out split of the file", leaked.sum())
    return rows[~leaked]


def load_splits(options: DataOptions) -> tuple[DatasetDict, Task, dict]:
    """The file as `train`, `validation`, `test`, each with columns id, text, label; the task it states; and the
    `text_column` and `label_columns` that were read."""
    table = read_table(options.dataset_path)
    text = find_text_column(table, options.text_column)
    labels = find_label_columns(table, options.label_columns, text)
    rows = labelled_rows(options.dataset_path, table, text, labels)
    task, rows["label"] = read_task(rows, labels)
    rows = drop_contradictions(drop_leaks(rows))
    rows["split"] = assign_splits(rows, options)
    parts = {name: rows.loc[rows["split"] == name, ["id", "text", "label"]] for name in ("train", "validation", "test")}
    if options.data_fraction < 1:
        parts["train"] = parts["train"].sample(frac=options.data_fraction, random_state=options.seed).sort_index()
    splits = DatasetDict({name: Dataset.from_pandas(part, preserve_index=False) for name, part in parts.items()})
    check_splits(splits, task)
    log.info("%s: text %r, %s %s; %s", options.dataset_path, text, "labels" if task.multi_label else "classes",
             "/".join(task.labels), ", ".join(f"{len(part)} {name}" for name, part in splits.items()))  # fmt: skip
    return splits, task, {"text_column": text, "label_columns": tuple(labels)}


def check_splits(splits: DatasetDict, task: Task) -> None:
    """Refuse splits in which a class cannot be learnt or measured."""
    for name, part in splits.items():
        labels = label_array(part)
        found = (labels.sum(axis=0) > 0).sum() if task.multi_label else len(np.unique(labels))
        if found < len(task.labels):
            raise UserError(f"--dataset_path: {found} of {len(task.labels)} labels occur in the {name} split of "
                            f"{len(part)} rows; give it a larger share, or more rows")  # fmt: skip


def label_array(split: Dataset) -> np.ndarray:
    """Labels as [rows] of class ids, or [rows, labels] of 0.0/1.0."""
    return np.asarray(split[:]["label"])


def tokenize(split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """`input_ids`, `attention_mask` and `labels` (with `teacher_logits` where the split has them)."""
    kept = {"label": "labels", "teacher_logits": "teacher_logits"}
    dropped = [name for name in split.column_names if name not in kept]
    encoded = split.map(lambda rows: dict(tokenizer(rows["text"], truncation=True, max_length=max_length)),
                        batched=True, remove_columns=dropped, desc="tokenize", load_from_cache_file=False)  # fmt: skip
    return encoded.rename_column("label", "labels")
