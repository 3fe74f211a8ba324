"""Measure diversity and prompt alignment; calibrate; plots."""
