"""The checkpoints of the Hugging Face Trainer in a stage's directory: which can be resumed,
which is best."""

import json
from pathlib import Path
from typing import Any

from runtime.distributed import process_count

CHECKPOINTS = "checkpoints"  # the directory of a stage that has them
HISTORY_FIELDS = ("epoch", "loss", "eval_loss", "eval_macro_f1")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The Trainer's state at a checkpoint."""
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint has every file that resuming needs; its state is written last."""
    try:
        step = read_state(checkpoint)["global_step"]
    except (OSError, ValueError):
        return False
    names = ["model.safetensors", "optimizer.pt", "scheduler.pt"]
    if process_count() == 1:
        names.append("rng_state.pth")
    else:
        names += [f"rng_state_{index}.pth" for index in range(process_count())]
    has_files = all((checkpoint / name).is_file() for name in names)
    return has_files and checkpoint.name == f"checkpoint-{step}"


def last_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint in `directory`, if any."""
    complete = [path for path in directory.glob("checkpoint-*") if is_complete(path)]
    return max(complete, key=lambda path: read_state(path)["global_step"], default=None)


def is_finished(checkpoint: Path, epochs: int, patience: int) -> bool:
    """Whether training ended at this checkpoint: after all epochs, or by early stopping."""
    state = read_state(checkpoint)
    stopping = state["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"]
    return state["epoch"] >= epochs or stopping["early_stopping_patience_counter"] >= patience


def best_checkpoint(last: Path) -> Path:
    """The checkpoint of the best validation epoch, which the Trainer keeps in addition to the
    last one."""
    return last.with_name(f"checkpoint-{read_state(last)['best_global_step']}")


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
