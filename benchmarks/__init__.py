"""Measurements: memory, speed, and what diversity methods do to quality and diversity."""
