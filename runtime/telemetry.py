"""Usage reports of libraries are off: nothing about a run leaves the machine. No torch.

| library | what it does by default | how it is turned off |
|---|---|---|
| onnxruntime | uploads events; writes ids into the cache directory when imported | variable |
| nncf, openvino | report to Google Analytics; write ids into the home directory | import blocked |
| huggingface_hub | adds the versions of libraries to requests | variable |
"""

import os
import sys

SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
REPORTING_PACKAGE = "openvino_telemetry"  # nncf and openvino report nothing without it


def disable_telemetry() -> None:
    """Turn the reports off, in this process and in those that it starts.

    Call it before the libraries are imported. Environment variables that are set are kept, and so
    is `openvino_telemetry` if it is already imported.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    # importing it then raises ImportError, as if it were not installed
    sys.modules.setdefault(REPORTING_PACKAGE, None)
