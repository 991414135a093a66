"""Sensors, what samples with them, and where it looks: ``fovi.sensing``."""
