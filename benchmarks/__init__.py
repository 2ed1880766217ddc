"""Benchmarks; run one from the repository root with `python -m benchmarks.NAME`, see README.md."""
