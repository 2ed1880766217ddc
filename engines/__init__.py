"""Inference engines: every format of a model behind one interface, and what writes the formats."""
