"""From shards to batches: each step's samples are a function of (seed, step)."""
