"""Prompt -> text features."""
