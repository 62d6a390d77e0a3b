"""Tests. What libraries read of the environment when they are loaded is set here, which is before anything else is."""

import os

# Tests run side by side, and arrays are small: threads that spin until others get a core made one test ten times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests start hundreds of processes, which would compile all modules each time where byte code is not to be kept
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
