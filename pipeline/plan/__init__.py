"""Plan of a cycle: what it will take, measured on a few objects."""
