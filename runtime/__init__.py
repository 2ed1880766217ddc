"""Shared infrastructure: options from the command line, files, stage directories, logs,
processes, the CPU, telemetry.

Importing it turns the telemetry of libraries off: every command and every use from Python
imports it before any of them.
"""

from runtime.telemetry import disable_telemetry

disable_telemetry()
