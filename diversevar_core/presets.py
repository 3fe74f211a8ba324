"""Presets of diversity settings, and the calibration that is saved next to a model."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .checkpoints.files import read_object
from .errors import UserError, quote
from .job import PLAIN, Chain
from .methods.repulsion import Repulsion
from .methods.ssr_sar import PAPER, DiverseVAR
from .methods.starts import Starts
from .settings import Settings


@dataclass(frozen=True)
class Preset:
    """Diversity settings; the defaults are the model as published.

    guidance_start: of ``Settings``. starts: candidates of ``Starts``. ssr, sar: of ``DiverseVAR``.
    repulsion: strength of ``Repulsion``.
    """

    guidance_start: int = 0
    starts: int = 1
    ssr: float = 0.0
    sar: float = 0.0
    repulsion: float = 0.0

    def settings(self, settings: Settings) -> Settings:
        """The model's settings with the preset's ``guidance_start``."""
        return replace(settings, guidance_start=self.guidance_start)

    def chain(self, connected: Chain = PLAIN) -> Chain:
        """``connected`` with those of the preset's methods and starts that it has not itself."""
        own = DiverseVAR(ssr=self.ssr, sar=self.sar), Repulsion(self.repulsion)
        kinds = {type(method) for method in connected.methods}
        added = [method for method in own if method not in OFF and type(method) not in kinds]
        starts = connected.starts or Starts(self.starts)
        return replace(connected, methods=(*added, *connected.methods), starts=starts)

    @classmethod
    def used(cls, chain: Chain, guidance_start: int) -> Preset:
        """The numbers that a chain has, of a preset or of its own methods."""
        preset = cls(guidance_start, chain.starts.candidates if chain.starts else 1)
        for method in chain.methods:
            if isinstance(method, DiverseVAR):
                preset = replace(preset, ssr=method.ssr, sar=method.sar)
            elif isinstance(method, Repulsion):
                preset = replace(preset, repulsion=method.strength)
        return preset

    def __str__(self) -> str:
        changed = {name: n for name, n in asdict(self).items() if n != DEFAULTS[name]}
        return ", ".join(f"{name} {value:g}" for name, value in changed.items()) or "as published"


OFF = DiverseVAR(), Repulsion(0.0)
DEFAULTS = asdict(Preset())  # also the smallest valid values
MOST = Preset(guidance_start=128, starts=1024, ssr=8.0, sar=4.0, repulsion=16.0)  # the nodes' max

# measured on the emoji model (docs/emoji-model-card.md); for other models, see ``calibrate``
PRESETS = {
    "balanced": Preset(guidance_start=4),
    "most different": Preset(guidance_start=4, starts=256),
    "SSR + SAR (DiverseVAR)": Preset(ssr=PAPER.ssr, sar=PAPER.sar),
    "as published": Preset(),
}
CALIBRATION = "my calibration"  # the name of the preset that calibration saves


def is_preset(saved: object) -> bool:
    """Whether this JSON value is the fields of a valid preset."""
    if not isinstance(saved, dict) or saved.keys() - DEFAULTS.keys():
        return False
    return all(
        type(value) in {int, type(DEFAULTS[name])}
        and DEFAULTS[name] <= value <= getattr(MOST, name)
        for name, value in saved.items()
    )


def preset_named(name: str, model: Path) -> Preset:
    """One of ``PRESETS``, or the model's calibrated preset; UserError if it has none."""
    return calibrated_preset(model) if name == CALIBRATION else PRESETS[name]


def calibration_path(model: Path) -> Path:
    """The path of a model's calibration: ``<name>.diversity.json`` next to its file or folder."""
    return model.with_name(f"{model.name}.diversity.json")


def calibrated_preset(model: Path) -> Preset:
    """The preset that calibration chose for the model; UserError if there is none."""
    path = calibration_path(model)
    if not os.path.lexists(path):
        raise UserError(
            f"There is no finished calibration {quote(path)}; run Calibrate Diversity (or the "
            "command calibrate) once for this model."
        )
    chosen = read_object(path).get("chosen")
    if not is_preset(chosen):
        raise UserError(f"{quote(path)} is not a calibration of this version; calibrate again.")
    return Preset(**chosen)
