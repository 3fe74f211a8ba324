"""A part whose first check hangs, for ``test_card``."""

from troubles import hangs, works

CHECKS = {"hangs": hangs, "works": works}
