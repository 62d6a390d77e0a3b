"""What a cycle will take, measured on a few objects."""
