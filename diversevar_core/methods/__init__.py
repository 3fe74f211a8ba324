"""Methods for diversity, speed and memory, one file per paper."""
