"""The verb `synthesize`, and `lvsm_train.load`: own photos in, new views out."""
