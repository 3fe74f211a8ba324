"""Sampling settings (guidance, temperature, truncation), and their values at every token map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .errors import UserError, check_choice, check_range
from .schedule import Schedule


@dataclass(frozen=True)
class Settings:
    """Sampling settings; a family's ``defaults()`` are its official ones.

    Tuples have one value per scale; a shorter one repeats its last value.
    """

    cfg: tuple[float, ...]  # guidance
    cfg_schedule: str  # "flat": cfg as it is, 1 is none; "ramp": grows from 1 to 1 + cfg (VAR)
    tau: tuple[float, ...]  # temperature
    top_k: int  # draw from the k likeliest choices; 0: from all
    top_p: float  # draw from the likeliest choices that reach this probability; 0: from all
    cfg_layer: int = 0  # 0 guides the logits, -m the output of the m-th block from the end
    more_smooth: bool = False  # blend codebook rows instead of choosing one (codebook models only)
    guidance_start: int = 0  # side of the first guided map; see ``guidance``
    guidance_end: int = 0  # side of the last guided map; 0: the last map

    def check(self, depth: int, choices: int) -> None:
        """Raise UserError if they are not valid for a model; depth: its number of blocks."""
        check_range("cfg_layer (0: the logits, -1: the last block)", self.cfg_layer, 1 - depth, 0)
        for tau in self.tau:
            check_range("tau", tau, 0.001)
        for cfg in self.cfg:
            check_range("cfg", cfg, 0)
        check_range("top_k", self.top_k, 0)
        check_range("top_p", self.top_p, 0, 1)
        check_choice("cfg_schedule", self.cfg_schedule, ("flat", "ramp"))
        if self.more_smooth and choices == 2:
            raise UserError(
                "more_smooth blends codebook rows, and this model's tokens are bits; turn it off."
            )


class Guidance(NamedTuple):
    """Of one map: guided = g * conditional + (1 - g) * unconditional, logits divided by tau."""

    g: float
    tau: float


def guidance(settings: Settings, schedule: Schedule) -> list[Guidance]:
    """Guidance and temperature of every map.

    Guidance is limited to an interval (Kynkaanniemi et al., arXiv 2404.07724). The maps before
    ``guidance_start`` are drawn without guidance, at temperature 1: guidance and a low temperature
    make these maps, which decide what an image shows, nearly the same for every seed. The maps
    after ``guidance_end`` are drawn without guidance, at their own temperature: they have most of
    the tokens and take half the time without the unconditional rows.
    """
    values = []
    for scale, cfg, tau in zip(
        schedule,
        per_scale("cfg", settings.cfg, schedule),
        per_scale("tau", settings.tau, schedule),
        strict=True,
    ):
        g = cfg if settings.cfg_schedule == "flat" else 1 + cfg * scale.progress
        early = scale.side < settings.guidance_start
        late = scale.side > (settings.guidance_end or schedule[-1].side)
        values.append(Guidance(1.0, 1.0) if early else Guidance(1.0 if late else g, tau))
    return values


def per_scale(name: str, values: Sequence[float], schedule: Schedule) -> tuple[float, ...]:
    """One value per scale; values shorter than the schedule repeat their last one."""
    if not 1 <= len(values) <= len(schedule):
        raise UserError(
            f"{name} has {len(values)} values, but this image has {len(schedule)} scales; "
            f"give one value, or up to {len(schedule)}."
        )
    return tuple(values) + (values[-1],) * (len(schedule) - len(values))
