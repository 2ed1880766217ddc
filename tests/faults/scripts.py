"""Faults in scripts/."""

from faults.fault import Fault

TEMPLATE = "scripts/kaggle_notebook_template.py"

FAULTS = (
    Fault(
        name="pip may replace the torch of the image",
        file=TEMPLATE,
        old='command += ["-r", str(requirements), "-c", str(constraints)]',
        new='command += ["-r", str(requirements)]',
        tests="tests/test_notebook.py -k stays",
    ),
    Fault(
        name="one of several inputs is guessed",
        file=TEMPLATE,
        old="    if len(candidates) == 1:",
        new="    if candidates:",
        tests="tests/test_notebook.py -k several",
    ),
    Fault(
        name="the models of an earlier session are not reused",
        file=TEMPLATE,
        old="    return os.path.commonpath(earlier_models)",
        new='    return ""',
        tests="tests/test_notebook.py -k reused",
    ),
    Fault(
        name="the second GPU is not used",
        file=TEMPLATE,
        old="    if processes <= 1:",
        new="    if processes <= 2:",
        tests="tests/test_notebook.py -k gpus",
    ),
)
