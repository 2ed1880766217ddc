"""Results as tables, CSV, JSON, an HTML page and a model card."""
