"""Text encoders: families, initial models, vocabularies, calibration, sparsity."""
