"""The scale loop, seeds, and what methods can change."""
