"""Faults in evaluation, timing, results, pages and model cards."""

from faults.fault import Fault

FAULTS = (
    Fault(
        name="the number of threads is not passed to the engine",
        file="engines/latency.py",
        old="    engine = load_engine(directory, format_name, max_length, threads, device)\n",
        new="    engine = load_engine(directory, format_name, max_length, None, device)\n",
        tests="tests/test_latency.py -k threads_are_fixed",
    ),
    Fault(
        name="speedup is the inverse ratio",
        file="engines/latency.py",
        old='        row["speedup_torch"] = torch_ms / latency_ms\n',
        new='        row["speedup_torch"] = latency_ms / torch_ms\n',
        tests="tests/test_stages.py -k speedups",
    ),
    Fault(
        name="the untimed first pass is timed",
        file="engines/latency.py",
        old="    return [seconds_of(call) for _ in range(passes)]\n",
        new="    return [seconds_of(call) for _ in range(passes + 1)]\n",
        tests="tests/test_latency.py -k burst",
    ),
    Fault(
        name="size computed from the number of parameters",
        file="evaluation.py",
        old="    total_bytes = sum(file.stat().st_size for file in files)\n",
        new="    counts = count_parameters(model_format.directory, model_format.format_name)\n"
        "    total_bytes = 4 * counts.parameters\n",
        tests="tests/test_pipelines.py -k quant_only-magnitude-fp16",
    ),
    Fault(
        name="the first loaded format is evaluated again instead of the current one",
        file="evaluation.py",
        old='    description = f"evaluate {model_format.name}"\n',
        new='    globals().setdefault("loaded", []).append(engine)\n    engine = loaded[0]\n'
        '    description = f"evaluate {model_format.name}"\n',
        tests="tests/test_stages.py -k directory_named",
    ),
    Fault(
        name="agreement with the labels instead of the teacher",
        file="evaluation.py",
        old='    row["agreement"] = agreement(decisions, teacher_decisions)\n',
        new='    row["agreement"] = agreement(decisions, labels)\n',
        tests="tests/test_stages.py -k directory_named",
    ),
    Fault(
        name="names are not escaped in the model card",
        file="reporting/markdown.py",
        old='    return ACTIVE_CHARACTERS.sub(r"\\\\\\1", one_line(text))\n',
        new="    return one_line(text)\n",
        tests="tests/test_card.py -k breaks",
    ),
    Fault(
        name="the model card shows the F1 of another format",
        file="reporting/model_card.py",
        old="        values = [f\"{row[f'f1.{label}']:.4f}\" for row in formats]\n",
        new="        values = [f\"{formats[0][f'f1.{label}']:.4f}\" for row in formats]\n",
        tests="tests/test_card.py -k numbers",
    ),
    Fault(
        name="a multi-label snippet uses a wrong threshold",
        file="reporting/templates/snippet_graph_decision.py.jinja",
        old="for row in logits > 0])",
        new="for row in logits > 1.5])",
        tests="tests/test_card.py -k applies",
    ),
    Fault(
        name="strings are inserted into snippets without quoting",
        file="reporting/snippets.py",
        old="    text = repr(value)\n",
        new="    text = f\"'{value}'\"\n",
        tests="tests/test_card.py -k literals",
    ),
    Fault(
        name="a page without escaping",
        file="reporting/html.py",
        old="    autoescape=True,\n",
        new="    autoescape=False,\n",
        tests="tests/test_report.py -k only_text",
    ),
    Fault(
        name="direction characters are not replaced",
        file="reporting/html.py",
        old="    finalize=visible,\n",
        new="",
        tests="tests/test_report.py -k findings",
    ),
    Fault(
        name="lost points are called gained",
        file="reporting/results.py",
        old='        sign = -1\n        word = "lost"\n',
        new='        sign = 1\n        word = "gained"\n',
        tests="tests/test_report.py -k one_sentence",
    ),
    Fault(
        name="the verdict describes a rejected format",
        file="reporting/results.py",
        old='    accepted = [row for row in headline_rows(rows) if row.get("shipped", True)]\n',
        new="    accepted = headline_rows(rows)\n",
        tests="tests/test_report.py -k last_accepted",
    ),
    Fault(
        name="the smallest differences come first",
        file="reporting/run_page.py",
        old="np.argsort(-gaps.max(axis=1)",
        new="np.argsort(gaps.max(axis=1)",
        tests="tests/test_report.py -k largest",
    ),
    Fault(
        name="dominated points are on the Pareto front",
        file="reporting/plots.py",
        old="        if not front or point.quality > front[-1].quality:\n",
        new="        if not front or point.quality > 0:\n",
        tests="tests/test_report.py -k pareto",
    ),
    Fault(
        name="labels of a plot overlap",
        file="reporting/plots.py",
        old="            if is_inside and box.count_overlaps(occupied) == 0:\n",
        new="            if is_inside:\n",
        tests="tests/test_report.py -k overlap",
    ),
    Fault(
        name="texts are shown despite --no_examples",
        file="reporting/run_page.py",
        old='    if with_examples and final != "teacher":\n',
        new='    if final != "teacher":\n',
        tests="tests/test_report.py -k without_examples",
    ),
)
