"""Faults of uploads, of runs without a benchmark, of the card's examples, and of a run's first
lines."""

from faults.fault import Fault

FAULTS = (
    Fault(
        name="an uploaded model is public",
        file="runtime/hub.py",
        old="api.create_repo(name, private=True, exist_ok=True)",
        new="api.create_repo(name, private=False, exist_ok=True)",
        tests="tests/test_hub.py -k byte_for_byte",
    ),
    Fault(
        name="a model may be uploaded to a public repository",
        file="runtime/hub.py",
        old="    if is_public:\n",
        new="    if False:\n",
        tests="tests/test_hub.py -k changes_nothing",
    ),
    Fault(
        name="a message repeats the token",
        file="runtime/hub.py",
        old='.replace(os.environ[TOKEN_VARIABLE], "***")',
        new="",
        tests="tests/test_hub.py -k failed_upload",
    ),
    Fault(
        name="only the weights are uploaded",
        file="runtime/hub.py",
        old="            folder_path=directory,\n",
        new='            folder_path=directory,\n            allow_patterns="*.safetensors",\n',
        tests="tests/test_hub.py -k byte_for_byte",
    ),
    Fault(
        name="a run uploads before it checks the repository",
        file="main.py",
        old="    if options.push_to_hub and not options.audit:\n",
        new="    if options.push_to_hub and options.audit:\n",
        tests="tests/test_hub.py -k checks_first",
    ),
    Fault(
        name="a benchmark may take as long as the stages",
        file="experiments/timing.py",
        old="    return sum(seconds.values()) / 3\n",
        new="    return sum(seconds.values())\n",
        tests="tests/test_no_benchmark.py -k quarter",
    ),
    Fault(
        name="the budget of a benchmark is ignored",
        file="engines/latency.py",
        old="min(budget_s, BUDGET_S * len(calls))",
        new="BUDGET_S * len(calls)",
        tests="tests/test_no_benchmark.py -k minimum_of_rounds",
    ),
    Fault(
        name="a run without a benchmark has no note",
        file="reporting/results.py",
        old="    if not any(map(is_timed, rows)):\n",
        new="    if False:\n",
        tests="tests/test_no_benchmark.py -k table_notes",
    ),
    Fault(
        name="without times the card loads the largest graph",
        file="reporting/snippets.py",
        old='    return min(rows, key=itemgetter("bytes")), "smallest"\n',
        new='    return max(rows, key=itemgetter("bytes")), "smallest"\n',
        tests="tests/test_no_benchmark.py -k smallest",
    ),
    Fault(
        name="an example has another label",
        file="experiments/experiment.py",
        old="else labels == position\n",
        new="else labels != position\n",
        tests="tests/test_card_examples.py -k first_test_text",
    ),
    Fault(
        name="examples are cut without a sign",
        file="reporting/model_card.py",
        old='    return f"{text[:MAX_EXAMPLE_CHARACTERS]} [...]"\n',
        new="    return text[:MAX_EXAMPLE_CHARACTERS]\n",
        tests="tests/test_card_examples.py -k escaped_short",
    ),
    Fault(
        name="a file gets the cursor codes of bars",
        file="runtime/logs.py",
        old='        plain = CURSOR_CODE.sub("", text)\n',
        new="        plain = text\n",
        tests="tests/test_console.py -k file_or_a_pipe",
    ),
)
