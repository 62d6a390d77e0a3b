"""The GPU trainer's side: what turns shards into an LVSM's inputs. Imports torch."""
