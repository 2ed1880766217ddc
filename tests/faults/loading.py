"""Faults in what is loaded as teacher, student or served model."""

from faults.fault import Fault

LOADING = "tests/test_loading.py"
FAMILIES = "tests/test_families.py"

FAULTS = (
    Fault(
        name="missing tensors of the encoder are initialized",
        file="encoders/loading.py",
        old="        random_names = [name for name in random_names if not is_head(model, name)]",
        new="        random_names = []",
        tests=f"{LOADING} -k 'teacher_that_cannot and (other_family or more_layers)'",
    ),
    Fault(
        name="layers that config.json does not mention are dropped",
        file="encoders/loading.py",
        old="    if homeless:",
        new="    if False:",
        tests=f"{LOADING} -k fewer_layers",
    ),
    Fault(
        name="weights may be NaN",
        file="encoders/loading.py",
        old="    check_finite(model)",
        new="    pass",
        tests=f"{LOADING} -k not_a_number",
    ),
    Fault(
        name="a served model may have a random head",
        file="engines/engine.py",
        old="allow_new_head=False",
        new="allow_new_head=True",
        tests=f"{LOADING} -k without_a_head",
    ),
    Fault(
        name="wrapper prefixes are not removed",
        file="encoders/loading.py",
        old="    if renaming:",
        new="    if False:",
        tests=f"{LOADING} -k served_model_is_read_through",
        raises="UnusableModel",
    ),
    Fault(
        name="the student is not loaded before the teacher is trained",
        file="encoders/start.py",
        old="    load_pretrained(spec, flag, task, max_length, is_finished=is_finished)",
        new="    pass",
        tests=f"{LOADING} -k 'student_that_cannot and fewer_layers'",
    ),
    Fault(
        name="token ids may lie beyond the embedding",
        file="encoders/pretrained.py",
        old="    if token_id >= rows:",
        new="    if token_id > rows:",
        tests=f"{LOADING} -k ids_beyond",
    ),
    Fault(
        name="a tokenizer without files passes",
        file="encoders/pretrained.py",
        old="    if len(ordinary_tokens) < MIN_ORDINARY_TOKENS:",
        new="    if not ordinary_tokens:",
        tests=f"{LOADING} -k 'no_tokenizer or empty_vocabulary or special_tokens_only'",
    ),
    Fault(
        name="a tokenizer without padding token passes",
        file="encoders/pretrained.py",
        old="    if tokenizer.pad_token is None:",
        new="    if False:",
        tests=f"{LOADING} -k no_padding_token",
    ),
    Fault(
        name="a missing weight file is not noticed",
        file="encoders/model_files.py",
        old="    if missing:",
        new="    if False:",
        tests=f"{LOADING} -k missing_shard",
    ),
    Fault(
        name="quantized integers are read as weights",
        file="encoders/model_files.py",
        old='FLOAT_TYPES = ("F64", ',
        new='FLOAT_TYPES = ("I8", "F64", ',
        tests=f"{LOADING} -k integer_weights",
    ),
    Fault(
        name="the rows of a saved head are not reordered",
        file="encoders/saved_heads.py",
        old="        layer.weight.copy_(layer.weight[order].clone())",
        new="        pass",
        tests=f"{LOADING} -k 'own_logit or numbers_as_names'",
    ),
    Fault(
        name="the biases of a saved head are not reordered",
        file="encoders/saved_heads.py",
        old="        layer.bias.copy_(layer.bias[order].clone())",
        new="        pass",
        tests=f"{LOADING} -k numbers_as_names",
    ),
    Fault(
        name="a head for other labels is kept",
        file="encoders/saved_heads.py",
        old="            layer.weight.normal_(0, model.config.initializer_range)\n",
        new="",
        tests=f"{LOADING} -k initialized_again",
    ),
    # Families
    Fault(
        name="a family that nobody tested is admitted",
        file="encoders/family_table.py",
        old="    if model_type not in SUPPORTED:",
        new="    if model_type in REFUSED:",
        tests=f"{FAMILIES} -k another_family",
    ),
    Fault(
        name="relative positions that transformers ignores are admitted",
        file="encoders/family_table.py",
        old='    if str(positions).startswith("relative_key"):',
        new="    if False:",
        tests=f"{FAMILIES} -k an_unsupported_encoder",
    ),
    Fault(
        name="the positions of MPNet begin at 0",
        file="encoders/family_table.py",
        old='    "mpnet": 2,',
        new='    "mpnet": 0,',
        tests=f"{FAMILIES} -k 'position_limit and mpnet'",
        raises="IndexError",
    ),
    Fault(
        name="the positions of data2vec begin at 0",
        file="encoders/family_table.py",
        old='    "data2vec-text": AFTER_PADDING,',
        new='    "data2vec-text": 0,',
        tests=f"{FAMILIES} -k 'position_limit and data2vec'",
        raises="RuntimeError",
    ),
    Fault(
        name="Wanda scores Linears on relative positions as on tokens",
        file="encoders/calibration.py",
        old="        sums = self.token_sums if are_tokens else self.position_sums",
        new="        sums = self.token_sums",
        tests=f"{FAMILIES} -k 'wanda_scores and v2'",
    ),
    Fault(
        name="Linears that see only positions have no scores",
        file="encoders/calibration.py",
        old="            name: sums if sums.any() else self.position_sums[name]",
        new="            name: sums",
        tests=f"{FAMILIES} -k wanda_scores",
    ),
)
