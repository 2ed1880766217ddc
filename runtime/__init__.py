"""Shared infrastructure: options from the command line, files, stage directories, logs,
processes, the CPU."""
