"""Executors of workers: in this process, on this machine, on a Ray cluster."""
