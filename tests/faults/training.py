"""Faults in `training.py`, `distillation.py` and `runtime/checkpoints.py`."""

from faults.fault import Fault

TRAINING = "training.py"
DISTILLATION = "distillation.py"
CHECKPOINTS = "runtime/checkpoints.py"
JOIN = "outputs.select(positions)"
BATCH_ORDER = "tests/test_stages.py -k batches"

FAULTS = (
    Fault(
        name="the teacher's logits are shifted by one row",
        file=DISTILLATION,
        old=JOIN,
        new="outputs.select(positions - (positions > 0))",
        tests="tests/test_stages.py -k joined",
    ),
    Fault(
        name="the teacher's logits are joined by position",
        file=DISTILLATION,
        old=JOIN,
        new="outputs.select(range(len(positions)))",
        tests="tests/test_stages.py -k joined",
    ),
    Fault(
        name="the student reads token ids of the teacher",
        file=DISTILLATION,
        old="    live_loss = None\n",
        new="    live_loss = None\n"
        "    from transformers import AutoTokenizer\n"
        "    tokenizer = AutoTokenizer.from_pretrained(model_in)\n",
        tests="tests/test_stages.py -k own_tokenizer",
    ),
    Fault(
        name="layers are paired from the first",
        file=DISTILLATION,
        old="layers.append(max(round(number * teacher_layers / student_layers) - 1, 0))",
        new="layers.append(min(number, teacher_layers) - 1)",
        tests="tests/test_distillation.py -k paired",
    ),
    Fault(
        name="states of the previous batch are compared",
        file=DISTILLATION,
        old="            outputs.clear()\n",
        new="            pass\n",
        tests="tests/test_distillation.py -k recorded",
    ),
    Fault(
        name="keys are compared with queries",
        file=DISTILLATION,
        old="key.register_forward_hook(partial(self.record, self.keys))",
        new="key.register_forward_hook(partial(self.record, self.queries))",
        tests="tests/test_distillation.py -k recorded",
    ),
    Fault(
        name="the projection is saved with the student",
        file=DISTILLATION,
        old="        del student.kd_project\n",
        new="        pass\n",
        tests="tests/test_distillation.py -k narrower",
    ),
    Fault(
        name="the best epoch may end before all weights are pruned",
        file="trainer.py",
        old="if self.state.global_step < self.min_best_fraction * self.state.max_steps:",
        new="if self.state.global_step < 0:",
        tests="tests/test_stages.py -k minimum_fraction",
    ),
    Fault(
        name="a threshold is folded with the wrong sign",
        file=TRAINING,
        old="bias.data[label] -= math.log(threshold / (1 - threshold))",
        new="bias.data[label] += math.log(threshold / (1 - threshold))",
        tests="tests/test_repeats.py -k folded",
    ),
    Fault(
        name="the best epoch is chosen on the test split",
        file=TRAINING,
        old="broadcast_from_main(partial(write_tokens, splits[name], tokenizer, max_length, path))",
        new='split = splits["test" if name == "validation" else name]\n'
        "        broadcast_from_main(partial(write_tokens, split, tokenizer, max_length, path))",
        tests="tests/test_memory.py -k finished_training",
    ),
    Fault(
        name="the order of batches is the same in every epoch",
        file="trainer.py",
        old="manual_seed(self.seed + self.epoch)",
        new="manual_seed(self.seed)",
        tests=BATCH_ORDER,
    ),
    Fault(
        name="the order of batches cannot be resumed",
        file="trainer.py",
        old="get_length_grouped_indices(self.lengths, self.batch, generator=generator)",
        new="get_length_grouped_indices(self.lengths, self.batch, generator=None)",
        tests=BATCH_ORDER,
    ),
    Fault(
        name="the bar of a resumed training starts at 0",
        file="trainer.py",
        old="                initial=state.global_step,\n",
        new="",
        tests="tests/test_console.py -k resumed_training",
    ),
    Fault(
        name="the last epoch is kept instead of the best",
        file=CHECKPOINTS,
        old="read_state(last)['best_global_step']",
        new="read_state(last)['global_step']",
        tests="tests/test_memory.py -k best",
    ),
    Fault(
        name="training resumes from a checkpoint without its optimizer",
        file=CHECKPOINTS,
        old='names = ["model.safetensors", "optimizer.pt", "scheduler.pt"]',
        new='names = ["model.safetensors", "scheduler.pt"]',
        tests="tests/test_memory.py -k missing_file",
    ),
)
