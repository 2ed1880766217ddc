"""Put typical faults into a copy of the project, one at a time, and see that its tests turn red.

Each fault is a file, an old text, a new text, and the tests that must notice. Prints `caught` or `missed` for each;
the exit code is 1 where one is missed. `python scripts/check_faults.py [WORD]` runs those whose name holds WORD.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", "models", "compressed_models", "__pycache__", ".*_cache", ".hypothesis"
)


class Fault(NamedTuple):
    """One line of damage, and the tests that must see it."""

    name: str
    file: str
    old: str
    new: str
    tests: str  # arguments of pytest


MATHS, STAGES, SPLITS = "tests/test_compression.py", "tests/test_stages.py", "tests/test_splits.py"
PIPELINES, UNCERTAINTY = "tests/test_pipelines.py", "tests/test_uncertainty.py"
KD, STRUCTURE = "tests/test_distillation.py", "tests/test_structure.py"
MEMORY, QUANTIZATION = "tests/test_memory.py", "tests/test_quantization.py"
REPORT = "tests/test_report.py"
QAT = "tests/test_qat.py"
GATE, EXPORT, SCORER = "tests/test_gate.py", "tests/test_export.py", "tests/test_inference.py"
ABLATION = "tests/test_ablation.py"
CARD, CONSOLE = "tests/test_card.py", "tests/test_console.py"
NOTEBOOK, TEMPLATE = "tests/test_notebook.py", "scripts/kaggle_notebook_template.py"
FAULTS = (
    Fault(
        "teacher logits shifted by one row",
        "distillation.py",
        "index_in(ours, theirs).to_numpy())",
        "index_in(ours, theirs).to_numpy() - (pc.index_in(ours, theirs).to_numpy() > 0))",
        f"{STAGES} -k joined",
    ),
    Fault(
        "teacher logits joined by position",
        "distillation.py",
        "pc.index_in(ours, theirs).to_numpy()",
        "range(len(ours))",
        f"{STAGES} -k joined",
    ),
    Fault(
        "dropout without its scale",
        "dropout.py",
        "* (256 / (256 - dropped))",
        "* 1.0",
        "tests/test_dropout.py",
    ),
    Fault(
        "dropout by one byte for eight values",
        "dropout.py",
        "draws.view(torch.uint8)[: values.numel()]",
        "draws.view(torch.uint8)[::8].repeat_interleave(8)[: values.numel()]",
        "tests/test_dropout.py",
    ),
    Fault(
        "T^2 dropped", "losses.py", "return temperature**2 * divergence", "return divergence", MATHS
    ),
    Fault(
        "T^2 dropped in multi-label", "losses.py", "return temperature**2 * (F", "return (F", MATHS
    ),
    Fault(
        "KL arguments swapped",
        "losses.py",
        "F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1)",
        "F.kl_div(teacher.log_softmax(-1), student.log_softmax(-1)",
        MATHS,
    ),
    Fault("KL averaged over classes too", "losses.py", '"batchmean"', '"mean"', MATHS),
    Fault(
        "student left unsoftened",
        "losses.py",
        "logits / temperature, teacher",
        "logits, teacher",
        MATHS,
    ),
    Fault(
        "alpha on the wrong side",
        "losses.py",
        "alpha * soft + (1 - alpha)",
        "(1 - alpha) * soft + alpha",
        MATHS,
    ),
    Fault(
        "multi-label loss by softmax",
        "losses.py",
        "F.binary_cross_entropy_with_logits(logits, labels, pos_",
        "F.cross_entropy(logits, labels, ",
        MATHS,
    ),
    Fault(
        "class weights upside down",
        "losses.py",
        "(len(labels) - positives) / positives",
        "positives / (len(labels) - positives)",
        MATHS,
    ),
    Fault(
        "student fed the teacher's ids",
        "distillation.py",
        "    of_states = {",
        "    tokenizer = __import__('transformers').AutoTokenizer.from_pretrained(model_in)\n    of_states = {",
        f"{STAGES} -k own_tokenizer",
    ),
    Fault(
        "relation KL swapped",
        "losses.py",
        "(theirs.exp() * (theirs - ours))",
        "(ours.exp() * (ours - theirs))",
        KD,
    ),
    Fault("relations not scaled by width", "losses.py", "vectors.shape[-1] ** 0.5", "1", KD),
    Fault(
        "relations with padding",
        "losses.py",
        "return scores.masked_fill(mask[:, None, None, :] == 0,",
        "return scores.masked_fill(mask[:, None, None, :] < 0,",
        KD,
    ),
    Fault(
        "hidden states of padding compared",
        "losses.py",
        "values[mask.bool()].mean()",
        "values.mean()",
        KD,
    ),
    Fault("attention of padding compared", "losses.py", ".mean(dim=1)[both].mean()", ".mean()", KD),
    Fault(
        "only the first layer compared",
        "losses.py",
        "pairs = zip(student.hidden, teacher.hidden, strict=True)",
        "pairs = zip(student.hidden[:1], teacher.hidden[:1], strict=True)",
        KD,
    ),
    Fault(
        "weights of the losses of states ignored",
        "losses.py",
        "sum(weight * STATE",
        "sum(STATE",
        KD,
    ),
    Fault(
        "layers paired from the bottom",
        "distillation.py",
        "max(round((i + 1) * teacher_layers / student_layers) - 1, 0)",
        "min(i, teacher_layers - 1)",
        KD,
    ),
    Fault(
        "states of the batch before",
        "distillation.py",
        "            kept.clear()",
        "            pass",
        f"{KD} -k watched",
    ),
    Fault(
        "keys taken for queries",
        "encoders.py",
        '("query", "key", "value")',
        '("key", "value", "query")',
        f"{KD} -k watched",
    ),
    Fault(
        "the projection shipped",
        "distillation.py",
        "        del student.kd_project",
        "        pass",
        f"{KD} -k narrower",
    ),
    Fault(
        "a hard loss without a label",
        "losses.py",
        "!= NO_LABEL\n    if not",
        ">= NO_LABEL\n    if not",
        KD,
    ),
    Fault(
        "transfer texts from the test split",
        "data.py",
        "~(empties | leaks | copies)",
        "~(empties | copies)",
        KD,
    ),
    Fault(
        "other texts' outputs remembered",
        "stages.py",
        'rows_digest(rows, ("id", "text"))',
        "len(rows) > 1",
        f"{KD} -k without_labels",
    ),
    Fault(
        "calibration on texts without labels",
        "pruning.py",
        'labelled_rows(splits["train"])',
        'splits["train"]',
        f"{KD} -k calibrated",
    ),
    Fault(
        "masks not re-applied in recovery",
        "masks.py",
        "        apply_masks_(self.linears, self.masks)",
        "        pass",
        f"{STAGES} -k 'recovery or cubic_schedule'",
    ),
    Fault(
        "masks held on the first step alone",
        "masks.py",
        "        apply_masks_(self.linears, self.masks)",
        "        apply_masks_(self.linears, self.masks) if state.global_step < 1 else None",
        f"{STAGES} -k recovery",
    ),
    Fault(
        "masks that slip by one step",
        "pruning.py",
        "step, ramp = state.global_step + 1,",
        "step, ramp = state.global_step,",
        f"{STAGES} -k cubic_schedule",
    ),
    Fault(
        "a schedule that is not cubic",
        "pruning.py",
        "(1 - min(step / ramp, 1.0)) ** 3",
        "(1 - min(step / ramp, 1.0)) ** 2",
        MATHS,
    ),
    Fault(
        "the best epoch before all is pruned",
        "training.py",
        "return settled and super()",
        "return super()",
        f"{STAGES} -k settles",
    ),
    Fault(
        "zeros not checked in training",
        "pruning.py",
        'self.pruner.check(f"after',
        'str(f"after',
        f"{STAGES} -k lost",
    ),
    Fault(
        "zeros not checked after export",
        "stages.py",
        "promised - 1e-6",
        "promised - 1",
        f"{STAGES} -k lost",
    ),
    Fault(
        "a global scope by layer",
        "pruning.py",
        'if scope == "global" else',
        'if scope == "none" else',
        MATHS,
    ),
    Fault(
        "one of equal scores too few",
        "pruning.py",
        "cumsum(dim=0) <= left[row]",
        "cumsum(dim=0) < left[row]",
        MATHS,
    ),
    Fault(
        "inputs of the layer before",
        "calibration.py",
        "if inputs is not self.last[0]:",
        "if self.last[0] is None:",
        f"{MATHS} -k batching",
    ),
    Fault(
        "a tokenizer off by one row",
        "structure.py",
        "embedding.weight.copy_(rows[kept])",
        "embedding.weight.copy_(rows[kept].roll(1, 0))",
        f"{STRUCTURE} -k 'changes_no_logit or own_token'",
    ),
    Fault(
        "a special token lost",
        "vocabulary.py",
        'kept = {token["id"] for token in spec["added_tokens"]}',
        'kept = {token["id"] for token in spec["added_tokens"][:-1]}',
        STRUCTURE,
    ),
    Fault(
        "the template's ids left as they were",
        "vocabulary.py",
        "value = [new[old] for old in value]",
        "pass",
        STRUCTURE,
    ),
    Fault("an unknown token that moved", "vocabulary.py", 'new[model["unk_id"]]', "0", STRUCTURE),
    Fault(
        "merges without their halves",
        "vocabulary.py",
        "self.halves.get(open_.pop(), set()) - found",
        "set(open_[open_.pop() :][:0])",
        f"{STRUCTURE} -k 'merged_from or changes_no_logit'",
    ),
    Fault(
        "no least score left to Unigram",
        "vocabulary.py",
        ", int(np.argmin(scores)), ",
        ", ",
        f"{STRUCTURE} -k least_score",
    ),
    Fault(
        "tokens up to padding dropped",
        "structure.py",
        ", *range(positions_before_text(model.config))}",
        "}",
        f"{STRUCTURE} -k counts_positions",
    ),
    Fault(
        "what an unknown word took forgotten",
        "vocabulary.py",
        "*used.taken, ",
        "",
        f"{STRUCTURE} -k otherwise_known",
    ),
    Fault(
        "a piece that became unknown unseen",
        "structure.py",
        "one.ids != [kept[new] for new in other.ids]",
        "one.tokens != other.tokens",
        f"{STRUCTURE} -k notices",
    ),
    Fault(
        "importance computed on padding",
        "calibration.py",
        "self.mask.flatten().to(squares.dtype) @ squares",
        "squares.sum(0)",
        f"{STRUCTURE} -k padding",
    ),
    Fault(
        "importance without activations",
        "structure.py",
        "return norm * down.norm(dim=0)",
        "return down.norm(dim=0)",
        f"{STRUCTURE} -k by_hand",
    ),
    Fault(
        "the least important neurons kept",
        "structure.py",
        "importance.topk(width)",
        "importance.topk(width, largest=False)",
        f"{STRUCTURE} -k masked_one",
    ),
    Fault(
        "a neuron's bias left behind",
        "structure.py",
        "part.data[kept]) for part in (up.weight, up.bias)",
        "part.data[kept] if part.ndim > 1 else part.data[:len(kept)]) for part in (up.weight, up.bias)",
        STRUCTURE,
    ),
    Fault(
        "the student trained from its full shape",
        "stages.py",
        'student_path=start["start"])',
        "seed=options.seed)",
        f"{PIPELINES} -k shapes_change",
    ),
    Fault(
        "Wanda's norm over padding too",
        "calibration.py",
        "self.mask.flatten().to(squares.dtype) @ squares",
        "squares.sum(0)",
        MATHS,
    ),
    Fault(
        "Wanda's norm without the root",
        "calibration.py",
        "total.sqrt().float()",
        "total.float()",
        MATHS,
    ),
    Fault(
        "one threshold per layer", "pruning.py", 'if scope != "row":', 'if scope != "none":', MATHS
    ),
    Fault(
        "magnitude with its sign",
        "pruning.py",
        "    return weight.abs()\n",
        "    return weight\n",
        MATHS,
    ),
    Fault(
        "the highest scores pruned",
        "pruning.py",
        "scores < threshold, scores",
        "scores > threshold, scores",
        MATHS,
    ),
    Fault("sparsity not checked", "masks.py", "if found < wanted:", "if found < 0:", MATHS),
    Fault(
        "the head pruned too",
        "encoders.py",
        "for name, module in layers.named_modules()",
        "for name, module in model.named_modules()",
        MATHS,
    ),
    Fault(
        "layers from the bottom alone",
        "encoders.py",
        "round(i * (available - 1) / (count - 1))",
        "i",
        MATHS,
    ),
    Fault(
        "labels reordered between training and id2label",
        "encoders.py",
        "dict(enumerate(self.labels))",
        "dict(enumerate(reversed(self.labels)))",
        f"{STAGES} -k order",
    ),
    Fault(
        "an unseeded vocabulary",
        "encoders.py",
        "first = [*SPECIAL_TOKENS, *continuations(texts, trained)]",
        "first = [*SPECIAL_TOKENS]",
        f"{MEMORY} -k goes_on",
    ),
    Fault(
        "test rows in training",
        "data.py",
        "one_split(labelled, chosen == number)",
        "one_split(labelled, (chosen == number) | (number == 0))",
        SPLITS,
    ),
    Fault(
        "copies compared as written",
        "labelled.py",
        'keys = by_chunk(lambda chunk: text_key(chunk.fill_null(""))',
        'keys = by_chunk(lambda chunk: chunk.fill_null("")',
        SPLITS,
    ),
    Fault(
        "a leak with other spacing",
        "labelled.py",
        'ODD_BLANKS, BLANKS, " ")',
        'ODD_BLANKS, BLANKS, "  ")',
        SPLITS,
    ),
    Fault(
        "format characters tell copies apart",
        "labelled.py",
        'replace(texts, r"\\p{Cf}", r"\\p{Cf}+", "")',
        "texts",
        f"{SPLITS} -k any_file",
    ),
    Fault(
        "copies compared before normalisation",
        "labelled.py",
        'pc.utf8_normalize(texts.filter(mask), "NFC")',
        "texts.filter(mask)",
        f"{STAGES} -k normal_form",
    ),
    Fault(
        "normalised text fed to the models",
        "data.py",
        "labelled.texts(chosen).combine_chunks()",
        "text_key(labelled.texts(chosen).combine_chunks())",
        SPLITS,
    ),
    Fault(
        "contradictions kept",
        "data.py",
        "return labelled.where(~against)",
        "return labelled",
        SPLITS,
    ),
    Fault(
        "leaks of the file's own split kept",
        "data.py",
        "labelled = labelled.where(~leaks)",
        "pass",
        SPLITS,
    ),
    Fault(
        "data_fraction cuts the test split",
        "data.py",
        'splits["train"] = splits["train"].select(',
        'splits["test"] = splits["train"].select(',
        SPLITS,
    ),
    Fault(
        "a fold's teacher shared",
        "stages.py",
        "together, sources, self.data_digest])",
        "together, sources])",
        "tests/test_repeats.py -k own_teachers",
    ),
    Fault(
        "every fold the same test split",
        "data.py",
        "folds[fold][1]",
        "folds[0][1]",
        f"{SPLITS} -k folds",
    ),
    Fault(
        "a metric on the wrong split",
        "stages.py",
        '"splits" / "test.parquet"',
        '"splits" / "validation.parquet"',
        f"{PIPELINES} -k 'quant_only-magnitude-fp16 or test_rows_alone'",
    ),
    Fault(
        "unpaired resampling",
        "uncertainty.py",
        "macro_f1(drawn, truth, decided) - macro_f1(drawn, truth, reference)",
        "macro_f1(drawn, truth, decided) - macro_f1(resample(counts, draws, seed + 1), truth, reference)",
        f"{UNCERTAINTY} -k pairing",
    ),
    Fault(
        "deviation of a population",
        "uncertainty.py",
        "ddof=1",
        "ddof=0",
        f"{UNCERTAINTY} -k overlap",
    ),
    Fault(
        "overlap of training rows forgotten",
        "uncertainty.py",
        "1 / runs + test_share",
        "1 / runs",
        f"{UNCERTAINTY} -k overlap",
    ),
    Fault(
        "exact p instead of mid-p",
        "uncertainty.py",
        "0.5) - point)",
        "0.5))",
        f"{UNCERTAINTY} -k mid_p",
    ),
    Fault(
        "90 % called 95 %",
        "uncertainty.py",
        "[2.5, 97.5]",
        "[5, 95]",
        f"{UNCERTAINTY} -k 95_percent",
    ),
    Fault(
        "threads left free",
        "benchmark.py",
        "max_length, threads, device)\n    CALLS[name] = {}",
        "max_length, None, device)\n    CALLS[name] = {}",
        "tests/test_benchmark.py -k threads_are_fixed",
    ),
    Fault(
        "a threshold folded the wrong way",
        "threshold.py",
        "bias.data[label] -=",
        "bias.data[label] +=",
        "tests/test_repeats.py -k folded",
    ),
    Fault(
        "best epoch chosen on test",
        "training.py",
        "write_tokens, splits[name], tokenizer",
        'write_tokens, splits["test" if name == "validation" else name], tokenizer',
        f"{MEMORY} -k goes_on",
    ),
    Fault(
        "the last epoch kept, not the best",
        "training.py",
        "read_state(last)['best_global_step']",
        "read_state(last)['global_step']",
        f"{MEMORY} -k best",
    ),
    Fault(
        "the same order every epoch",
        "training.py",
        "self.seed + self.epoch",
        "self.seed",
        f"{STAGES} -k batches",
    ),
    Fault(
        "an order that cannot be resumed",
        "training.py",
        "generator=generator",
        "generator=None",
        f"{STAGES} -k batches",
    ),
    Fault(
        "a checkpoint without its optimizer taken",
        "training.py",
        '"optimizer.pt", ',
        "",
        f"{MEMORY} -k lacks",
    ),
    Fault(
        "bytes computed by formula",
        "evaluation.py",
        "total = sum(file.stat().st_size for file in files)",
        "total = 4 * count_weights(form.path, form.served).parameters",
        "tests/test_pipelines.py -k quant_only-magnitude-fp16",
    ),
    Fault(
        "a form evaluated from memory",
        "evaluation.py",
        "    engine = load(form.path,",
        "    globals().setdefault('kept', []).append(load(form.path, form.served, options.max_length))\n"
        "    engine = kept[0] or load(form.path,",
        f"{STAGES} -k directory_named",
    ),
    Fault(
        "agreement with the labels",
        "evaluation.py",
        "agreement(decisions, teachers)",
        "agreement(decisions, labels)",
        f"{STAGES} -k directory_named",
    ),
    Fault(
        "F1 weighted by class size",
        "evaluation.py",
        'labels, decisions, average="macro"',
        'labels, decisions, average="weighted"',
        f"{STAGES} -k by_hand",
    ),
    Fault(
        "multi-label decided by the largest logit",
        "engines.py",
        "(logits > 0).astype(int)",
        "(logits == logits.max(axis=1, keepdims=True)).astype(int)",
        f"{STAGES} -k multi_label",
    ),
    Fault(
        "a remembered stage not invalidated by its data",
        "stages.py",
        "sources, self.data_digest])",
        "sources])",
        f"{MEMORY} -k rests_on",
    ),
    Fault(
        "another teacher's student remembered",
        "stages.py",
        "together, sources,",
        "together,",
        f"{MEMORY} -k another_teacher",
    ),
    Fault(
        "another seed's teacher remembered",
        "compression_config.py",
        "fields(group)})",
        "fields(group)} | ({'seed': 42} if hasattr(options, 'seed') else {}))",
        f"{MEMORY} -k rests_on",
    ),
    Fault(
        "a damaged directory remembered",
        "artifacts.py",
        "file_digest(directory / name) == known",
        "known",
        f"{MEMORY} -k unchanged",
    ),
    Fault(
        "no lock",
        "artifacts.py",
        'with FileLock(folder / ".lock", timeout=0):',
        "if True:",
        f"{MEMORY} -k second_run",
    ),
    Fault(
        "speedup upside down",
        "benchmark.py",
        'times[baselines["torch"]]["latency_ms_p50"] / p50',
        'p50 / times[baselines["torch"]]["latency_ms_p50"]',
        f"{STAGES} -k speedups",
    ),
    Fault(
        "compression ratio upside down",
        "stages.py",
        'teacher_bytes / row["bytes"]',
        'row["bytes"] / teacher_bytes',
        "tests/test_pipelines.py -k quant_only-magnitude-fp16",
    ),
    Fault(
        "equal forms timed apart",
        "stages.py",
        'return read_record(form.path)["fingerprint"], form.served',
        "return str(form.path), form.served",
        f"{ABLATION} -k timed_once",
    ),
    Fault(
        "different forms timed as one",
        "stages.py",
        'return read_record(form.path)["fingerprint"], form.served',
        "return form.name, form.served",
        f"{ABLATION} -k timed_once",
    ),
    Fault(
        "another form's evaluation taken over",
        "stages.py",
        'key = digest([[[one["fingerprint"], one["files"]] for one in models]',
        "key = digest([form.name",
        f"{ABLATION} -k timed_once",
    ),
    Fault(
        "a pipeline's rows under another's name",
        "ablation.py",
        "in zip(experiments, results, strict=True)",
        "in zip(experiments, results[::-1], strict=True)",
        f"{ABLATION} -k those_of",
    ),
    Fault(
        "an option left to pipelines without use for it",
        "compression_config.py",
        "for name in found - of_no_use}",
        "for name in ()}",
        f"{ABLATION} -k no_use",
    ),
    Fault(
        "logits in the order of length",
        "engines.py",
        '[np.argsort(longest_first, kind="stable")]',
        "",
        f"{STAGES} -k joined",
    ),
    Fault(
        "fp16 left to compute in half",
        "quantization.py",
        'config | {"dtype": "float32"}',
        'config | {"dtype": "float16"}',
        f"{QUANTIZATION} -k fp16",
    ),
    Fault(
        "the gate's sign",
        "stages.py",
        'drop = parent["validation_macro_f1"] - row["validation_macro_f1"]',
        'drop = row["validation_macro_f1"] - parent["validation_macro_f1"]',
        f"{GATE} -k collapses",
    ),
    Fault(
        "the gate looks at the test split",
        "stages.py",
        'self.directory / "splits" / "validation.parquet" if gate',
        'self.directory / "splits" / "test.parquet" if gate',
        f"{GATE} -k validation_alone",
    ),
    Fault(
        "the least sensitive layer left whole",
        "gate.py",
        "key=lambda name: -found[name]",
        "key=lambda name: found[name]",
        f"{GATE} -k at_fault",
    ),
    Fault(
        "a rounded layer left rounded",
        "gate.py",
        "        layer.weight.data = kept\n",
        "",
        f"{GATE} -k rounded_alone",
    ),
    Fault(
        "layers named whole are quantized",
        "graphs.py",
        "and module_path(node.name) in modules]",
        "and module_path(node.name) in ()]",
        f"{EXPORT} -k whole",
    ),
    Fault(
        "4-bit zeros not at 8",
        "weights.py",
        "[:, : widths[name]], 8",
        "[:, : widths[name]], 0",
        f"{EXPORT} -k zeros",
    ),
    Fault(
        "padding attended to",
        "engines.py",
        "mask[row, where] = tokens, 1",
        "mask[row, :] = tokens, 1",
        f"{QUANTIZATION} -k masked",
    ),
    Fault(
        "variants of held-out texts learnt from",
        "data.py",
        "np.isin(hashes, held_out)",
        "np.isin(hashes, [])",
        "tests/test_distillation.py -k held_out",
    ),
    Fault(
        "scored rows in the order of length",
        "scoring.py",
        "[np.argsort(np.concatenate(batches))]",
        "",
        f"{SCORER} -k in_order",
    ),
    Fault(
        "ranges of the first texts alone",
        "graphs.py",
        "    while part := list(",
        "    if part := list(",
        f"{EXPORT} -k ranges_are",
    ),
    Fault(
        "gradients stopped by the rounding",
        "qat.py",
        "return values + change",
        "return (values + change).detach()",
        f"{QAT} -k gradient",
    ),
    Fault(
        "weights whole in training under rounding",
        "qat.py",
        "partial(rounded_weight, bits=bits)",
        "Tensor.clone",
        f"{QAT} -k 'gradient or plain'",
    ),
    Fault(
        "the whole rate under rounding",
        "qat.py",
        "options.lr * LR_SHARE",
        "options.lr",
        f"{QAT} -k ready",
    ),
    Fault(
        "inputs whole in training under int8",
        "qat.py",
        "if linear and bits == 8:",
        "if linear and bits == 9:",
        f"{QAT} -k gradient",
    ),
    Fault(
        "written off the grid",
        "qat.py",
        "plain.weight.copy_(rounded_weight(plain.weight, bits))",
        "pass",
        f"{QAT} -k 'plain or ready'",
    ),
    Fault(
        "zeros revived under rounding",
        "qat.py",
        "callbacks=(HoldZeros(encoder_linears(model)),)",
        "callbacks=()",
        f"{QAT} -k ready",
    ),
    Fault(
        "a 4-bit grid that exports do not have",
        "rounding.py",
        "extreme / -8)",
        "extreme / -7)",
        f"{QAT} -k 'hand or export'",
    ),
    Fault(
        "the column learnt from not read",
        "layouts.py",
        "if names.count(learnt) == 1:",
        "if False:",
        f"{SCORER} -k learnt_from",
    ),
    Fault(
        "dates taken for texts",
        "labelled.py",
        'kinds.count("N") >',
        'kinds.count("X") >',
        f"{SPLITS} -k dates",
    ),
    Fault(
        "a changed file served",
        "inference.py",
        'record and record.get("files", {}).get(name) != found[name]',
        "False",
        f"{SCORER} -k changed_since",
    ),
    Fault(
        "names unescaped in the card",
        "card.py",
        r'ACTIVE.sub(r"\\\1", one_line(text))',
        "one_line(text)",
        f"{CARD} -k breaks",
    ),
    Fault(
        "the card shows another form's F1",
        "card.py",
        "f\"{row[f'f1.{label}']:.4f}\" for row in forms",
        "f\"{forms[0][f'f1.{label}']:.4f}\" for row in forms",
        f"{CARD} -k figures",
    ),
    Fault(
        "several labels decided by the largest",
        "card.py",
        "for row in logits > 0])",
        "for row in logits > 1.5])",
        f"{CARD} -k holds",
    ),
    Fault(
        "an edited card makes another teacher",
        "artifacts.py",
        "return digest(model_digests(Path(spec)))",
        "return digest(file_digests(Path(spec)))",
        f"{CARD} -k edited",
    ),
    Fault(
        "the log begins anew with each run",
        "console.py",
        'super().__init__(path, encoding="utf-8"',
        'super().__init__(path, "w", encoding="utf-8"',
        f"{CONSOLE} -k bars_and_logs",
    ),
    Fault(
        "a resumed bar starts at nothing",
        "training.py",
        "initial=state.global_step, ",
        "",
        f"{CONSOLE} -k resumed",
    ),
    Fault(
        "a page that escapes nothing",
        "page.py",
        "autoescape=True",
        "autoescape=False",
        f"{REPORT} -k only_text",
    ),
    Fault(
        "direction marks let through", "page.py", "finalize=visible, ", "", f"{REPORT} -k findings"
    ),
    Fault(
        "points lost said to be won",
        "report.py",
        '(-1, "lost") if points < 0',
        '(1, "won") if points < 0',
        f"{REPORT} -k one_sentence",
    ),
    Fault(
        "the verdict of a form held back",
        "report.py",
        'if row.get("shipped", True)][-1]',
        "][-1]",
        f"{REPORT} -k is_shipped",
    ),
    Fault(
        "the nearest probabilities first",
        "report.py",
        "np.argsort(-gaps.max(axis=1)",
        "np.argsort(gaps.max(axis=1)",
        f"{REPORT} -k widest",
    ),
    Fault(
        "beaten points on the front",
        "plots.py",
        "point.quality > found[-1].quality",
        "point.quality > 0",
        f"{REPORT} -k pareto",
    ),
    Fault(
        "a history that is part of a model",
        "artifacts.py",
        "BESIDE = (RECORD, HISTORY,",
        "BESIDE = (RECORD,",
        f"{REPORT} -k neither_bytes",
    ),
    Fault(
        "texts shown all the same",
        "report.py",
        "if with_examples and final",
        "if final",
        f"{REPORT} -k without",
    ),
    Fault(
        "the head quantized",
        "quantization.py",
        "if name not in fitting]",
        "if name not in linears]",
        f"{QUANTIZATION} -k head",
    ),
    Fault(
        "the image's torch replaced",
        TEMPLATE,
        'requirements, "-c", constraints, *offline]',
        "requirements, *offline]",
        f"{NOTEBOOK} -k stays",
    ),
    Fault(
        "one of several inputs guessed",
        TEMPLATE,
        "if SETTINGS[name] or len(found) == 1:",
        "if SETTINGS[name] or found:",
        f"{NOTEBOOK} -k several",
    ),
    Fault(
        "an earlier session's models not taken up",
        TEMPLATE,
        'os.path.commonpath(earlier) if earlier else ""',
        '""',
        f"{NOTEBOOK} -k reused",
    ),
    Fault(
        "the second GPU idle",
        TEMPLATE,
        "if processes > 1 else",
        "if processes > 2 else",
        f"{NOTEBOOK} -k gpus",
    ),
    Fault(
        "bf16 on a T4, which only emulates it",
        "training.py",
        ">= (8, 0)",
        ">= (7, 0)",
        f"{NOTEBOOK} -k bf16",
    ),
)


def is_caught(fault: Fault, copy: Path) -> bool:
    """Whether the fault's tests fail in `copy` with the fault put in; the copy is mended afterwards."""
    path = copy / fault.file
    sound = path.read_text(encoding="utf-8")
    if sound.count(fault.old) != 1:
        raise SystemExit(
            f"{fault.name}: {fault.file} holds {sound.count(fault.old)} times, not once: {fault.old}"
        )
    path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *shlex.split(fault.tests),
    ]
    done = subprocess.run(
        command, cwd=copy, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    path.write_text(sound, encoding="utf-8")
    if done.returncode not in (0, 1):  # 1: tests failed; anything else: they never ran
        raise SystemExit(f"{fault.name}: pytest could not run {fault.tests}\n{done.stdout[-2000:]}")
    return done.returncode == 1


def main(word: str = "") -> int:
    """Try every fault whose name holds `word`."""
    chosen = [fault for fault in FAULTS if word in fault.name]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        for fault in chosen:
            caught = is_caught(fault, copy)
            missed += not caught
            print(f"{'caught' if caught else 'MISSED'}  {fault.name}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
