"""Text encoders: families, where a model starts, tokenizers and vocabularies, statistics of a model."""
