"""A run's folder: shards, journals, ledger, and copies in object stores."""
