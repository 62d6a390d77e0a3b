"""A trained model measured by a protocol: what `lvsm-data eval` does. docs/training.md."""
