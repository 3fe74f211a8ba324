"""Diversity methods, SSR and SAR first, and two for speed and memory: a file per paper."""
