"""Foveated vision: sensors, layers on them, networks, and where to look."""
