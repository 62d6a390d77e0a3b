"""Checkpoints, and readers of published weights."""
