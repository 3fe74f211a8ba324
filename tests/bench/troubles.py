"""Checks as a bad card would leave them, for ``test_card``."""

import os
import time

import torch

from benchmarks.card import Line
from benchmarks.meter import fits


def works(card):
    yield Line("works", "figure", "1 s", {"seconds": 1.0})


def raises(card):
    yield Line("raises, first", "pass")
    raise RuntimeError(f"no kernel in {card.scratch / 'models' / 'a.pth'} for this card")


def is_full(card):
    """The largest batch that memory has room for."""
    for batch in (1, 2**50):
        what = f"batch {batch}"
        done = fits(lambda: torch.ones(batch, 1024).numel(), card.device)  # noqa: B023
        yield Line(what, "figure" if done else "skipped")


def dies(card):
    yield Line("dies, first", "pass")
    os.abort()


CHECKS = {"raises": raises, "is full": is_full, "dies": dies, "works": works}


def hangs(card):
    yield Line("hangs, first", "pass")
    time.sleep(600)
