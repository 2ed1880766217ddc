"""Inference engines: every format of a model behind one interface, and the writers of the
formats."""

import runtime  # noqa: F401  (turns the telemetry of the engines off)
