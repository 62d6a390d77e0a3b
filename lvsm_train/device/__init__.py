"""Devices, ranks, sharding, and the speed and memory of a step."""
