"""The model families: a transformer each.

A family is a module with ``choices`` and ``depth``, ``defaults()``, and five steps that
``sampler.sample`` calls: ``start`` makes the state of one batch of pictures, ``condition`` puts
text or classes into it, ``embed``, ``block`` and ``logits`` take it through a scale.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Defaults:
    """A family's official sampling settings; ``cfg_schedule`` as in ``sampler.guidance``."""

    cfg: float
    cfg_schedule: str
    tau: float
    top_k: int
    top_p: float
