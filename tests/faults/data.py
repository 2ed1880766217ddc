"""Faults of reading, splitting, unlabeled texts, losses, metrics and the task."""

from faults.fault import Fault

COLUMNS = "corpus/columns.py"
COLUMN_CHOICE = "corpus/column_choice.py"
LABELS = "corpus/labels.py"
LABEL_CELLS = "corpus/label_cells.py"
VALUES = "corpus/values.py"
TEXT_KEYS = "corpus/text_keys.py"
AUDIT = "corpus/audit.py"
UNLABELED = "corpus/unlabeled.py"
DATA = "data.py"
TASK = "task.py"
LOSSES = "losses.py"
METRICS = "metrics.py"

LOSS_TESTS = "tests/test_compression.py"
STATE_TESTS = "tests/test_distillation.py"
SPLIT_TESTS = "tests/test_splits.py"
LABEL_TESTS = "tests/test_labels.py"
KIND_TESTS = "tests/test_label_kinds.py"
UNLABELED_TESTS = "tests/test_unlabeled.py"
STAGE_TESTS = "tests/test_stages.py"
METRIC_TESTS = "tests/test_metrics.py"

FAULTS = (
    Fault(
        name="the factor T^2 is missing",
        file=LOSSES,
        old="return temperature**2 * divergence",
        new="return divergence",
        tests=LOSS_TESTS,
    ),
    Fault(
        name="the factor T^2 is missing in a multi-label task",
        file=LOSSES,
        old="F.binary_cross_entropy_with_logits(student, target) - entropy",
        new="(F.binary_cross_entropy_with_logits(student, target) - entropy) / temperature**2",
        tests=LOSS_TESTS,
    ),
    Fault(
        name="the arguments of KL are swapped",
        file=LOSSES,
        old="student.log_softmax(-1), teacher.log_softmax(-1)",
        new="teacher.log_softmax(-1), student.log_softmax(-1)",
        tests=LOSS_TESTS,
    ),
    Fault(
        name="KL is averaged over classes too",
        file=LOSSES,
        old='reduction="batchmean"',
        new='reduction="mean"',
        tests=LOSS_TESTS,
    ),
    Fault(
        name="the student is not softened",
        file=LOSSES,
        old="student = logits / temperature",
        new="student = logits",
        tests=LOSS_TESTS,
    ),
    Fault(
        name="alpha weights the wrong loss",
        file=LOSSES,
        old="return alpha * soft + (1 - alpha) * hard",
        new="return (1 - alpha) * soft + alpha * hard",
        tests=LOSS_TESTS,
    ),
    Fault(
        name="the multi-label loss is a softmax over labels",
        file=LOSSES,
        old="F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)",
        new="F.cross_entropy(logits, labels, weight=weights)",
        tests=LOSS_TESTS,
    ),
    Fault(
        name="class weights are inverted",
        file=LOSSES,
        old="return (len(labels) - positives) / positives",
        new="return positives / (len(labels) - positives)",
        tests=LOSS_TESTS,
    ),
    Fault(
        name="the KL of relations is swapped",
        file=LOSSES,
        old="teacher_log.exp() * (teacher_log - student_log)",
        new="student_log.exp() * (student_log - teacher_log)",
        tests=STATE_TESTS,
    ),
    Fault(
        name="relations are not scaled by the width",
        file=LOSSES,
        old="vectors.shape[-1] ** 0.5",
        new="1",
        tests=STATE_TESTS,
    ),
    Fault(
        name="relations include padding",
        file=LOSSES,
        old="is_padding = mask[:, None, None, :] == 0",
        new="is_padding = mask[:, None, None, :] < 0",
        tests=STATE_TESTS,
    ),
    Fault(
        name="hidden states of padding are compared",
        file=LOSSES,
        old="return values[mask.bool()].mean()",
        new="return values.mean()",
        tests=STATE_TESTS,
    ),
    Fault(
        name="attention scores of padding are compared",
        file=LOSSES,
        old="errors[is_real_pair].mean()",
        new="errors.mean()",
        tests=STATE_TESTS,
    ),
    Fault(
        name="only the first hidden layer is compared",
        file=LOSSES,
        old="zip(student.hidden, teacher.hidden, strict=True)",
        new="zip(student.hidden[:1], teacher.hidden[:1], strict=True)",
        tests=STATE_TESTS,
    ),
    Fault(
        name="only the first of several losses on states is used",
        file=LOSSES,
        old="for name in names)",
        new="for name in names[:1])",
        tests=STATE_TESTS,
    ),
    Fault(
        name="unlabeled rows have a hard-label loss",
        file=LOSSES,
        old="return labels != NO_LABEL",
        new="return labels >= NO_LABEL",
        tests=STATE_TESTS,
    ),
    Fault(
        name="unlabeled texts include texts of the test split",
        file=UNLABELED,
        old="return ~(is_empty | is_held_out | is_duplicate)",
        new="return ~(is_empty | is_duplicate)",
        tests=UNLABELED_TESTS,
    ),
    Fault(
        name="augmented texts include held-out texts",
        file=UNLABELED,
        old="is_held_out = np.isin(hashes, self.held_out)",
        new="is_held_out = np.isin(hashes, [])",
        tests=f"{UNLABELED_TESTS} -k held_out",
    ),
    Fault(
        name="the labels of id2label are in another order",
        file=TASK,
        old='"id2label": dict(enumerate(self.labels)),',
        new='"id2label": dict(enumerate(reversed(self.labels))),',
        tests=f"{STAGE_TESTS} -k order",
    ),
    Fault(
        name="a multi-label decision is the largest logit",
        file=TASK,
        old="return (logits > 0).astype(int)",
        new="return (logits == logits.max(axis=1, keepdims=True)).astype(int)",
        tests=f"{STAGE_TESTS} -k multi_label",
    ),
    Fault(
        name="the training split contains all rows",
        file=DATA,
        old="build_split(corpus, positions == position)",
        new="build_split(corpus, (positions == position) | (position == 0))",
        tests=SPLIT_TESTS,
    ),
    Fault(
        name="the text of a split is normalized",
        file=DATA,
        old='"text": corpus.texts(mask).combine_chunks(),',
        new='"text": pc.utf8_trim_whitespace(corpus.texts(mask)).combine_chunks(),',
        tests=SPLIT_TESTS,
    ),
    Fault(
        name="contradicting texts are kept",
        file=DATA,
        old="return corpus.filter(~(is_contradicting | is_leaking))",
        new="return corpus.filter(~is_leaking)",
        tests=SPLIT_TESTS,
    ),
    Fault(
        name="leaks across the splits of the file are kept",
        file=DATA,
        old="return corpus.filter(~(is_contradicting | is_leaking))",
        new="return corpus.filter(~is_contradicting)",
        tests=SPLIT_TESTS,
    ),
    Fault(
        name="a text with different labels in training and test stays in test",
        file=DATA,
        old="return corpus.filter(~(is_contradicting | is_leaking))",
        new="corpus = corpus.filter(~leaking_rows(corpus, is_leaking & False))\n"
        "    return corpus.filter(~contradicting_rows(corpus))",
        tests=f"{SPLIT_TESTS} -k differs_between",
    ),
    Fault(
        name="labels pass through float",
        file=LABELS,
        old='labels.append(cell.partition(".")[0] if has_whole_numbers else cell)',
        new="labels.append(str(float(cell)) if is_decimal(cell) else cell)",
        tests=f"{LABEL_TESTS} -k text_of_its_cell",
    ),
    Fault(
        name="numbers are sorted as floats",
        file=LABELS,
        old="    return Decimal(label), label\n",
        new="    return float(label), label[::-1]\n",
        tests=f"{LABEL_TESTS} -k text_of_its_cell",
    ),
    Fault(
        name="1 and 1.0 are one class in any column",
        file=LABELS,
        old="if has_whole_numbers else cell)",
        new="if WHOLE_NUMBER.fullmatch(cell) else cell)",
        tests=f"{LABEL_TESTS} -k text_of_its_cell",
    ),
    Fault(
        name="none among words is a missing label",
        file=LABELS,
        old="if others and all(is_decimal(cell) or",
        new="if others and any(is_decimal(cell) or True or",
        tests=f"{LABEL_TESTS} -k na_words",
    ),
    Fault(
        name="rows are named by their position instead of their line",
        file="corpus/readers.py",
        old="numbers = np.array([row.number for row in rows])",
        new="numbers = np.arange(2, len(rows) + 2)",
        tests=f"{SPLIT_TESTS} -k lines",
    ),
    Fault(
        name="data_fraction reduces the test split",
        file=DATA,
        old='splits["train"] = sample_rows(splits["train"]',
        new='splits["test"] = sample_rows(splits["train"]',
        tests=SPLIT_TESTS,
    ),
    Fault(
        name="every fold has the same test split",
        file=DATA,
        old="_, held_out = folds[fold]",
        new="_, held_out = folds[0]",
        tests=f"{SPLIT_TESTS} -k folds",
    ),
    Fault(
        name="the only text of a rare class is held out",
        file=DATA,
        old="return np.where(counts < 2, 0,",
        new="return np.where(counts < 1, 0,",
        tests=f"{KIND_TESTS} -k rare_classes",
        raises="UserError",
    ),
    Fault(
        name="a rare label of several may be in one split only",
        file=DATA,
        old="return with_every_label(mask_of(held_out, len(positions)), texts.labels, seed)",
        new="return mask_of(held_out, len(positions))",
        tests=f"{KIND_TESTS} -k rare_label_of_several",
        raises="UserError",
    ),
    Fault(
        name="a label without rows counts in the interval of macro-F1",
        file=METRICS,
        old="macro_f1_of_counts(drawn, labels[:, present], decisions[:, present])",
        new="macro_f1_of_counts(drawn, labels, decisions)",
        tests=f"{METRIC_TESTS} -k that_occur",
    ),
    Fault(
        name="a label without rows counts in macro-F1",
        file=METRICS,
        old="f1_score(labels, decisions, labels=present, average",
        new="f1_score(labels, decisions, average",
        tests=f"{METRIC_TESTS} -k that_occur",
    ),
    Fault(
        name="a comma in a cell separates labels that never occur alone",
        file=LABEL_CELLS,
        old='is_separate = cells_of_part[part] > 1 if separator == "|" else part in single_parts',
        new="is_separate = cells_of_part[part] > 1",
        tests=KIND_TESTS,
    ),
    Fault(
        name="decimal commas separate labels in a cell",
        file=LABEL_CELLS,
        old='if not combinations or (separator == "," and decimal_commas(combinations)):',
        new="if not combinations:",
        tests=KIND_TESTS,
    ),
    Fault(
        name="a finished model is measured on the raw labels in a cell",
        file="corpus/labeled_rows.py",
        old="labels_of_cell[cell] = {names.name_of(label) for label in labels}",
        new="labels_of_cell[cell] = set(labels)",
        tests=f"{KIND_TESTS} -k finished",
        raises="UserError",
    ),
    Fault(
        name="an empty cell is a row without labels",
        file=LABELS,
        old="    rows[column.codes == MISSING] = MISSING\n",
        new="    rows[column.codes == MISSING] = 0\n",
        tests=KIND_TESTS,
    ),
    Fault(
        name="names of labels are taken in the order of the command line",
        file=LABELS,
        old="tuple(names[label] for label in task.labels)",
        new="tuple(names.values())",
        tests=KIND_TESTS,
    ),
    Fault(
        name="a prediction without labels is an empty cell",
        file="corpus/prediction_files.py",
        old="if not labels or any(LABEL_SEPARATOR in label for label in labels):",
        new="if any(LABEL_SEPARATOR in label for label in labels):",
        tests=f"{KIND_TESTS} -k inference_writes",
    ),
    Fault(
        name="duplicates are compared without normalization",
        file=COLUMNS,
        old='return text_key(texts.fill_null(""))',
        new='return texts.fill_null("")',
        tests=SPLIT_TESTS,
    ),
    Fault(
        name="an empty label cell gets the last class",
        file=VALUES,
        old="decoded[is_present] = np.array(values, dtype=int)[codes[is_present]]",
        new="decoded[:] = np.array(values, dtype=int)[codes]",
        tests=SPLIT_TESTS,
    ),
    Fault(
        name="dates are detected as texts",
        file=COLUMN_CHOICE,
        old='return kinds.count("N") >',
        new='return kinds.count("X") >',
        tests=f"{SPLIT_TESTS} -k dates",
        raises="UserError",
    ),
    Fault(
        name="texts that differ in white space are not duplicates",
        file=TEXT_KEYS,
        old='WHITESPACE, " ")',
        new='WHITESPACE, "  ")',
        tests=SPLIT_TESTS,
    ),
    Fault(
        name="texts that differ in format characters are not duplicates",
        file=TEXT_KEYS,
        old='visible = replace_matches(texts, FORMAT_CHARACTER, FORMAT_CHARACTER + "+", "")',
        new="visible = texts",
        tests=f"{SPLIT_TESTS} -k any_file",
    ),
    Fault(
        name="texts that differ in Unicode form are not duplicates",
        file=TEXT_KEYS,
        old='normalized = pc.utf8_normalize(texts.filter(is_unicode), "NFC")',
        new="normalized = texts.filter(is_unicode)",
        tests=f"{STAGE_TESTS} -k normal_forms",
    ),
    Fault(
        name="a problem that does not occur has a line in the audit",
        file=AUDIT,
        old="if rows > 0:",
        new="if rows >= 0:",
        tests="tests/test_audit.py -k does_not_occur",
    ),
    Fault(
        name="the bootstrap of a difference is not paired",
        file=METRICS,
        old="drawn_baseline_f1 = macro_f1_of_counts(drawn, labels, baseline)",
        new="drawn_baseline_f1 = macro_f1_of_counts(resample(counts, draws, seed + 1), labels, "
        "baseline)",
        tests=f"{METRIC_TESTS} -k pairing",
    ),
    Fault(
        name="the standard deviation is that of a population",
        file=METRICS,
        old="np.std(values, ddof=1)",
        new="np.std(values, ddof=0)",
        tests=f"{METRIC_TESTS} -k overlapping",
    ),
    Fault(
        name="the interval of a mean goes beyond what is possible",
        file=METRICS,
        old="max(mean - half, lowest), min(mean + half, highest)",
        new="mean - half, mean + half",
        tests=f"{METRIC_TESTS} -k possible",
    ),
    Fault(
        name="two repeats have an interval",
        file=METRICS,
        old="    if count < MIN_REPEATS:\n",
        new="    if count < 2:\n",
        tests=f"{METRIC_TESTS} -k no_interval",
    ),
    Fault(
        name="the interval of a mean ignores overlapping training sets",
        file=METRICS,
        old="np.sqrt(1 / count + test_share)",
        new="np.sqrt(1 / count)",
        tests=f"{METRIC_TESTS} -k overlapping",
    ),
    Fault(
        name="the p-value is exact instead of mid-p",
        file=METRICS,
        old="return float(2 * binom.cdf(fewer, discordant, 0.5) - point)",
        new="return float(2 * binom.cdf(fewer, discordant, 0.5))",
        tests=f"{METRIC_TESTS} -k mid_p",
    ),
    Fault(
        name="a 90 % interval is reported as 95 %",
        file=METRICS,
        old="np.percentile(values, [2.5, 97.5])",
        new="np.percentile(values, [5, 95])",
        tests=f"{METRIC_TESTS} -k 95_percent",
    ),
    Fault(
        name="macro-F1 is weighted by class size",
        file=METRICS,
        old='labels=present, average="macro", zero_division=0))',
        new='labels=present, average="weighted", zero_division=0))',
        tests=f"{STAGE_TESTS} -k by_hand",
    ),
    Fault(
        name="the last row before a drift is counted without the dropped rows",
        file="corpus/audit.py",
        old='"last_row": int(ids[rows_before - 1]) + 1,',
        new='"last_row": rows_before,',
        tests="tests/test_audit.py -k changes_along_the_file",
    ),
)
