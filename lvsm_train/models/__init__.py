"""LVSM: decoder-only and encoder-decoder transformers over Plücker rays."""
