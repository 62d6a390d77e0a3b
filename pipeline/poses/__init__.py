"""Formats of captures with cameras: one module each, which holds its axes and pixel conventions."""
