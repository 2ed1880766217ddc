"""One run: its checks, its plan of stages, its repeats, and several pipelines in one table."""
