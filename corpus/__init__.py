"""Files of texts: readers, columns, the audit, and rows with predictions."""
