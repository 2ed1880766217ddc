"""Faults in `encoders/` and `pruning.py`."""

from faults.fault import Fault

MATH = "tests/test_compression.py"
STRUCTURED = "tests/test_structured_pruning.py"
STAGES = "tests/test_stages.py"

FAULTS = (
    Fault(
        name="a saved tokenizer has a class that transformers 4 does not know",
        file="encoders/start.py",
        old='config["tokenizer_class"] = "PreTrainedTokenizerFast"',
        new='config["tokenizer_class"] = "TokenizersBackend"',
        tests="tests/test_published_files.py -k tokenizer",
    ),
    Fault(
        name="a saved tokenizer records that it was read from a directory",
        file="encoders/start.py",
        old='("is_local", "local_files_only")',
        new='("local_files_only",)',
        tests="tests/test_published_files.py -k tokenizer",
    ),
    Fault(
        name="weights that only their owner can read",
        file="runtime/artifacts.py",
        old="    follow_umask(partial)\n",
        new="",
        tests="tests/test_published_files.py -k umask",
    ),
    # Families and initial models
    Fault(
        name="keys are taken for queries",
        file="encoders/families.py",
        old='QUERY_KEY_VALUE = (("query", "key", "value"),',
        new='QUERY_KEY_VALUE = (("key", "value", "query"),',
        tests="tests/test_distillation.py -k recorded",
    ),
    Fault(
        name="the head is pruned too",
        file="encoders/families.py",
        old="linear for name, linear in linears_in(layers).items()}",
        new="linear for name, linear in linears_in(model).items()}",
        tests=MATH,
    ),
    Fault(
        name="the first layers of the teacher instead of spaced ones",
        file="encoders/specs.py",
        old="    return [round(i * (available - 1) / (count - 1)) for i in range(count)]",
        new="    return list(range(count))",
        tests=MATH,
    ),
    Fault(
        name="the order of a scratch vocabulary is not fixed",
        file="encoders/scratch.py",
        old="[*SPECIAL_TOKENS.values(), *continuation_tokens(texts, trained)]",
        new="[*SPECIAL_TOKENS.values()]",
        tests="tests/test_memory.py -k resumes_to_the_same",
    ),
    # Calibration
    Fault(
        name="a Linear gets the input of the Linear before",
        file="encoders/calibration.py",
        old="        if inputs is not self.last_inputs:",
        new="        if self.last_inputs is None:",
        tests=f"{MATH} -k batching",
        raises="RuntimeError",
    ),
    Fault(
        name="padding counts in the importance of neurons",
        file="encoders/calibration.py",
        old="            self.last_sums = (is_token @ squares).double().cpu()",
        new="            self.last_sums = squares.sum(0).double().cpu()",
        tests=f"{STRUCTURED} -k padding",
    ),
    Fault(
        name="padding counts in Wanda's input norms",
        file="encoders/calibration.py",
        old="(is_token @ squares)",
        new="(torch.ones_like(is_token) @ squares)",
        tests=f"{MATH} -k padding",
    ),
    Fault(
        name="Wanda's input norms without the square root",
        file="encoders/calibration.py",
        old="{name: sums.sqrt().float() for",
        new="{name: sums.float() for",
        tests=MATH,
    ),
    # Sparsity
    Fault(
        name="masks are not applied in recovery",
        file="encoders/sparsity.py",
        old="        apply_masks_(self.linears, self.masks)",
        new="        pass",
        tests=f"{STAGES} -k 'recovery or cubic_schedule'",
        raises="RuntimeError",
    ),
    Fault(
        name="masks are applied at the first step only",
        file="encoders/sparsity.py",
        old="        apply_masks_(self.linears, self.masks)",
        new="        if state.global_step < 1:\n            apply_masks_(self.linears, self.masks)",
        tests=f"{STAGES} -k recovery",
        raises="RuntimeError",
    ),
    Fault(
        name="the sparsity is not checked",
        file="encoders/sparsity.py",
        old="    if zeros < required:",
        new="    if zeros < 0:",
        tests=MATH,
    ),
    # Unstructured pruning
    Fault(
        name="pruning calibrates on unlabeled texts",
        file="pruning.py",
        old="    return calibration_texts(labeled_rows(split), count, seed)",
        new="    return calibration_texts(split, count, seed)",
        tests="tests/test_distillation.py -k calibrated",
    ),
    Fault(
        name="magnitude keeps its sign",
        file="pruning.py",
        old="    return weight.abs()\n",
        new="    return weight\n",
        tests=MATH,
    ),
    Fault(
        name="the highest scores are pruned",
        file="pruning.py",
        old="    lower = scores < threshold",
        new="    lower = scores > threshold",
        tests=MATH,
    ),
    Fault(
        name="one tied score too few is pruned",
        file="pruning.py",
        old=".cumsum(dim=0) <= missing[row]",
        new=".cumsum(dim=0) < missing[row]",
        tests=MATH,
    ),
    Fault(
        name="weights are compared within a layer instead of a row",
        file="pruning.py",
        old="        pruned = lowest_mask(scores, round(target_sparsity * linear.in_features))",
        new="        pruned = lowest_mask(\n"
        "            scores.flatten()[None], round(target_sparsity * scores.numel())\n"
        "        ).view_as(scores)",
        tests=MATH,
    ),
    Fault(
        name="the cubic schedule is quadratic",
        file="pruning.py",
        old="    return final - final * (1 - progress) ** 3",
        new="    return final - final * (1 - progress) ** 2",
        tests=MATH,
    ),
    Fault(
        name="the cubic schedule is one step late",
        file="pruning.py",
        old="        step = state.global_step + 1",
        new="        step = state.global_step",
        tests=f"{STAGES} -k cubic_schedule",
    ),
    Fault(
        name="zeros are not checked in training",
        file="pruning.py",
        old='            self.pruner.check_model(f"after epoch {state.epoch:g}")',
        new="            pass",
        tests=f"{STAGES} -k lost",
    ),
    # Feed-forward width
    Fault(
        name="the importance of neurons ignores activations",
        file="pruning.py",
        old="    return norm * down.norm(dim=0)",
        new="    return down.norm(dim=0)",
        tests=f"{STRUCTURED} -k by_hand",
    ),
    Fault(
        name="the least important neurons are kept",
        file="pruning.py",
        old="importance.topk(width).indices",
        new="importance.topk(width, largest=False).indices",
        tests=f"{STRUCTURED} -k masking",
    ),
    Fault(
        name="a neuron gets the bias of another neuron",
        file="pruning.py",
        old="    up.bias = nn.Parameter(up.bias.data[kept])",
        new="    up.bias = nn.Parameter(up.bias.data[: len(kept)])",
        tests=STRUCTURED,
    ),
    # Vocabulary
    Fault(
        name="an embedding row belongs to the next token",
        file="encoders/trimming.py",
        old="    embedding.weight.copy_(old.weight[kept_ids])",
        new="    embedding.weight.copy_(old.weight[kept_ids].roll(1, 0))",
        tests=f"{STRUCTURED} -k 'changes_no_logit or own_token'",
    ),
    Fault(
        name="an added token is not kept",
        file="encoders/vocabulary.py",
        old='    required = {token["id"] for token in spec["added_tokens"]}',
        new='    required = {token["id"] for token in spec["added_tokens"][:-1]}',
        tests=STRUCTURED,
        raises="KeyError",
    ),
    Fault(
        name="the post-processor keeps the old ids",
        file="encoders/trimming.py",
        old="            renumbered[key] = [new_ids[old_id] for old_id in item]",
        new="            renumbered[key] = item",
        tests=STRUCTURED,
        raises="RuntimeError",
    ),
    Fault(
        name="Unigram gets another unknown token",
        file="encoders/trimming.py",
        old='        model["unk_id"] = new_ids[model["unk_id"]]',
        new='        model["unk_id"] = 0',
        tests=STRUCTURED,
        raises="RuntimeError",
    ),
    Fault(
        name="BPE loses the tokens that a token is merged from",
        file="encoders/vocabulary.py",
        old="        new_ids = halves.get(pending.pop(), set()) - ids",
        new="        new_ids = {pending.pop()} - ids",
        tests=f"{STRUCTURED} -k 'merged_from or changes_no_logit'",
        raises="RuntimeError",
    ),
    Fault(
        name="Unigram loses the token of the least score",
        file="encoders/vocabulary.py",
        old="        required.add(int(np.argmin(scores)))",
        new="        required.add(int(np.argmax(scores)))",
        tests=f"{STRUCTURED} -k least_score",
    ),
    Fault(
        name="RoBERTa loses the tokens before padding",
        file="pruning.py",
        old=", *range(positions_before_text(model.config))}",
        new="}",
        tests=f"{STRUCTURED} -k positions",
    ),
    Fault(
        name="WordPiece loses the tokens matched in unknown words",
        file="encoders/vocabulary.py",
        old="[*frequent, *usage.unknown_word_pieces, *all_character_ids(backend)]",
        new="[*frequent, *all_character_ids(backend)]",
        tests=f"{STRUCTURED} -k stays_unknown",
    ),
    Fault(
        name="the check of trimmed tokens misses a token that became unknown",
        file="encoders/trimming.py",
        old="            if old.ids != [kept_ids[new_id] for new_id in new.ids]:",
        new="            if old.tokens != new.tokens:",
        tests=f"{STRUCTURED} -k notices",
    ),
)
