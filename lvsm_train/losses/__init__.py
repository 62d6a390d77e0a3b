"""Losses and metrics of pictures."""
