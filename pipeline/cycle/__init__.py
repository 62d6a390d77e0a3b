"""Render, train and delete, at once and under one disk budget."""
