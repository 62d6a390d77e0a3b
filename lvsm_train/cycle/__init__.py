"""The trainer's side of a cycle."""
