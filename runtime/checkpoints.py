"""The checkpoints of the Hugging Face Trainer in a stage's directory: which can be resumed,
which is best."""

from pathlib import Path
from typing import Any

from runtime.distributed import process_count
from runtime.files import delete, file_sha256, flush_tree_to_disk, read_json, read_state, write_json

CHECKPOINTS = "checkpoints"  # the directory of a stage that has them
STATE_NAME = "trainer_state.json"
LIST_NAME = "files.json"  # the hashes of a checkpoint's files
HISTORY_FIELDS = ("epoch", "loss", "eval_loss", "eval_macro_f1")


def read_trainer_state(checkpoint: Path) -> dict[str, Any]:
    """The Trainer's state at a checkpoint."""
    return read_json(checkpoint / STATE_NAME)


def seal(checkpoint: Path) -> None:
    """List the files of a checkpoint with their hashes; without this list it is not complete.

    The list is written last, and everything before it is on the disk.
    """
    flush_tree_to_disk(checkpoint)
    names = [path.name for path in sorted(checkpoint.iterdir()) if path.is_file()]
    write_json(checkpoint / LIST_NAME, {name: file_sha256(checkpoint / name) for name in names})


def read_sealed(path: Path) -> dict[str, str]:
    """The hashes that `seal` wrote; ValueError if a file is absent or changed."""
    hashes = read_json(path)
    if not isinstance(hashes, dict) or STATE_NAME not in hashes:
        raise ValueError("it is not a list of files")
    for name, expected in hashes.items():
        file = path.with_name(name)
        if not file.is_file() or file_sha256(file) != expected:
            raise ValueError(f"{name} is damaged")
    return hashes


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is sealed and undamaged, and was written by as many processes as now.

    Damage is named in a warning.
    """
    hashes = read_state(checkpoint / LIST_NAME, read_sealed)
    if hashes is None:
        return False
    names = ["rng_state.pth"]
    if process_count() > 1:
        names = [f"rng_state_{index}.pth" for index in range(process_count())]
    return all(name in hashes for name in names)


def usable_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in `directory` that can be resumed, in the order of their steps.

    Each is complete, and so is the best checkpoint up to it, if any.
    """
    complete = [path for path in directory.glob("checkpoint-*") if is_complete(path)]
    usable = []
    for path in sorted(complete, key=global_step):
        best = best_checkpoint(path)
        if best is None or best in complete:
            usable.append(path)
    return usable


def last_checkpoint(directory: Path) -> Path | None:
    """The newest usable checkpoint in `directory`, if any."""
    usable = usable_checkpoints(directory)
    return usable[-1] if usable else None


def delete_unusable(directory: Path) -> None:
    """Delete everything in `directory` except usable checkpoints; the directory need not exist."""
    if not directory.is_dir():
        return
    usable = usable_checkpoints(directory)
    for path in directory.iterdir():
        if path not in usable:
            delete(path)


def global_step(checkpoint: Path) -> int:
    """The number of optimizer steps before a checkpoint."""
    return read_trainer_state(checkpoint)["global_step"]


def is_finished(checkpoint: Path, epochs: int, patience: int) -> bool:
    """Whether training ended at this checkpoint: after all epochs, or by early stopping."""
    state = read_trainer_state(checkpoint)
    stopping = state["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"]
    return state["epoch"] >= epochs or stopping["early_stopping_patience_counter"] >= patience


def best_checkpoint(checkpoint: Path) -> Path | None:
    """The checkpoint of the best validation epoch up to a checkpoint, which the Trainer keeps in
    addition to the last one; None if no epoch could be the best yet."""
    step = read_trainer_state(checkpoint)["best_global_step"]
    return None if step is None else checkpoint.with_name(f"checkpoint-{step}")


def epoch_history(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics that the Trainer logged at the end of each epoch.

    `loss` on training rows, `eval_loss` and `eval_macro_f1` on validation rows, and `kept`: whether
    the weights of the epoch are the final ones.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for entry in state["log_history"]:
        step = entry["step"]
        epoch = by_step.setdefault(step, {"kept": step == state["best_global_step"]})
        for name in HISTORY_FIELDS:
            if name in entry:
                epoch[name] = entry[name]
    return [epoch for epoch in by_step.values() if "eval_macro_f1" in epoch]
