"""A run's own records: metrics.jsonl, TensorBoard."""
