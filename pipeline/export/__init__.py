"""A run's views in the formats of other tools: the verb `export`."""
