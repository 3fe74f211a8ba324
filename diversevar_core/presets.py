"""What makes seeds differ, in one choice: presets, and the calibration beside a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .methods import Method
from .methods.repulsion import Repulsion
from .settings import Settings
from .spectral import DiverseVAR
from .starts import Starts


@dataclass(frozen=True)
class Preset:
    """Strengths; these defaults are the model as published.

    guide_from: of ``Settings``. starts: candidates of ``Starts``. ssr, sar: of ``DiverseVAR``.
    repulsion: of ``Repulsion``.
    """

    guide_from: int = 0
    starts: int = 1
    ssr: float = 0.0
    sar: float = 0.0
    repulsion: float = 0.0

    def settings(self, settings: Settings) -> Settings:
        """The model's settings, guided late where the preset says so."""
        return replace(settings, guide_from=self.guide_from)

    def methods(self, chain: tuple[Method, ...] = ()) -> tuple[Method, ...]:
        """The methods that it stands for, and after them a chain's, which replace their like."""
        own = (
            Starts(self.starts),
            DiverseVAR(ssr=self.ssr, sar=self.sar),
            Repulsion(self.repulsion),
        )
        chained = {type(method) for method in chain}
        return (*(method for method in own if type(method) not in chained and acts(method)), *chain)

    def __str__(self) -> str:
        given = {name: value for name, value in asdict(self).items() if value != DEFAULTS[name]}
        return ", ".join(f"{name} {value:g}" for name, value in given.items()) or "as published"


DEFAULTS = asdict(Preset())


def acts(method: Method) -> bool:
    """Whether a preset's method is on."""
    off = (Starts(1), DiverseVAR(), Repulsion(0.0))
    return method not in off


# measured on the emoji model (docs/emoji-model-card.md); other models: ``calibrate``
PRESETS = {
    "as published": Preset(),
    "balanced": Preset(guide_from=4),
    "most different": Preset(guide_from=4, starts=256),
    "SSR + SAR as in the paper": Preset(ssr=0.5, sar=0.25),
}


def beside(model: Path) -> Path:
    """Where a model's calibration lies: ``<name>.diversity.json`` beside its file or folder."""
    return model.with_name(f"{model.name if model.is_dir() else model.stem}.diversity.json")


def calibrated_preset(model: Path) -> Preset:
    """What calibration chose for the model; ValueError where there is none."""
    path = beside(model)
    try:
        chosen = json.loads(path.read_text())["chosen"]
    except FileNotFoundError:
        chosen = None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a calibration ({error}); calibrate again.") from error
    if chosen is None:
        raise ValueError(
            f"There is no finished calibration {path}; run Calibrate Diversity (or the command "
            "calibrate) once for this model."
        )
    try:
        return Preset(**chosen)
    except TypeError as error:
        raise ValueError(f"{path} is of another version ({error}); calibrate again.") from error
