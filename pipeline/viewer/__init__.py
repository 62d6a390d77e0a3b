"""Pages that a small server on this machine answers for: any number of objects, each read when it is looked at."""
