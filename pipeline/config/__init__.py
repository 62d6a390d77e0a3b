"""Flags of the verbs, as frozen dataclasses."""
