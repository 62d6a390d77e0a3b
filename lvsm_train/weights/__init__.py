"""Checkpoints, and weights that others published."""
