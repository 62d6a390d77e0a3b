"""Flags of the trainer's verbs, without torch."""
