"""Inference engines: every format of a model behind one interface, and the writers of the
formats."""
