"""Strangers' files as Blender reads them: what it does not know is said in words that it does."""
