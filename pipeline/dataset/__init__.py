"""A run's shards as a Python collection, for those who read them: `pipeline.open`."""
