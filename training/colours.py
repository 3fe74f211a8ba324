"""Pictures of things of one hue in other colours, for prompts such as "blue car"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .data import Data
from .edits_data import COLOURS, in_state, to_oklab

GREY = 0.035  # largest mean chroma (Oklab, of the figure) of a picture without colour
THINGS = json.loads(Path(__file__).with_name("words.json").read_text())["coloured"].split("|")


def in_colour(prompt: str, colour: str) -> str:
    """A prompt in a colour: of a red apple, a blue apple."""
    first, _, rest = prompt.partition(" ")
    return f"{colour} {rest if first in COLOURS else prompt}"


def colour_prompts() -> Iterator[tuple[str, str, str]]:
    """All prompts of ``THINGS`` in colours, each with the thing and the colour."""
    for thing in THINGS:
        for colour in COLOURS:
            if in_colour(thing, colour) != thing:
                yield in_colour(thing, colour), thing, colour


def with_colours(data: Data, named: bool = True) -> Data:
    """The data, with ``THINGS`` in every colour: as concepts of their own, or more of the same."""
    pictures, concept, design = [data.pictures], [data.concept], [data.design]
    concepts = list(data.concepts)
    places = {one.prompt: place for place, one in enumerate(data.concepts)}
    for prompt, thing, colour in colour_prompts():
        if prompt in places:  # a design's own, such as a green apple
            continue
        own = data.concept == places[thing]
        place = len(concepts) if named else places[thing]
        pictures.append(in_state(data.pictures[own], colour))
        concept.append(torch.full((len(pictures[-1]),), place))
        design.append(data.design[own])
        if named:
            concepts.append(replace(data.concepts[places[thing]], prompt=prompt))
    return Data(torch.cat(pictures), torch.cat(concept), torch.cat(design), tuple(concepts))


def figure(pictures: Tensor) -> Tensor:
    """How much each pixel belongs to the figure, (N, H, W) in 0..1: its distance from white."""
    return ((255 - pictures.float()).mean(dim=-1) / 60).clamp(max=1)


def colour_of(pictures: Tensor) -> Tensor:
    """The colour nearest to the mean colour of each picture's figure, (N,): its place in
    ``COLOURS``, -1 for a figure without colour.
    """
    lab, weight = to_oklab(pictures.float() / 255), figure(pictures)
    a, b = ((lab[..., i] * weight).sum((1, 2)) for i in (1, 2))
    chroma = (lab[..., 1:].norm(dim=-1) * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
    hue = torch.rad2deg(torch.atan2(b, a))
    hues = torch.tensor([hue for hue, _ in COLOURS.values()])
    apart = (hue[:, None] - hues + 180) % 360 - 180
    return torch.where(chroma > GREY, apart.abs().argmin(dim=1), -1)
