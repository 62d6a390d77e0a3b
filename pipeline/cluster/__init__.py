"""Where workers run: this process, this machine, a Ray cluster."""
