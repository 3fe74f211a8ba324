"""The bench of layouts: what is asked, what is there, and how far objects move."""

import math
import random

import numpy as np
import torch

from benchmarks.diversity.layouts import FIRST, protocol, within_prompts
from training.layouts_data import (
    CONCEPTS,
    GROUNDS,
    PIXELS,
    draw_layout,
    draw_like,
    paint,
    read_prompt,
)
from training.layouts_judge import GRID, STRIDE, centres, ground_of

# every object is a red square that fills its box
SQUARES = np.full((len(CONCEPTS), 6, 96, 96, 4), (255, 0, 0, 255), dtype=np.uint8)


def test_a_layout_matches_its_prompt_and_fits_the_image():
    for seed in range(50):
        layout = draw_layout(random.Random(seed))
        concepts, ground = read_prompt(layout.prompt)
        assert concepts == tuple(placed.concept for placed in layout.objects)
        assert ground == layout.ground
        assert len(set(concepts)) == len(concepts)
        other = draw_like(layout, random.Random(seed + 1000))
        assert other.prompt == layout.prompt
        assert other.objects != layout.objects
        picture = paint(layout, SQUARES)
        covered = np.zeros((PIXELS, PIXELS), dtype=bool)
        for _, _, _, left, top, side in layout.objects:
            assert 0 <= left <= left + side <= PIXELS
            assert 0 <= top <= top + side <= PIXELS
            covered[top : top + side, left : left + side] = True
        assert (picture[covered] == (255, 0, 0)).all()
        assert (picture[~covered] == GROUNDS[ground]).all()


def test_the_background_is_recognised():
    layouts = [draw_layout(random.Random(seed)) for seed in range(40)]
    pictures = torch.tensor(np.stack([paint(layout, SQUARES) for layout in layouts]))
    seen = [list(GROUNDS)[i] for i in ground_of(pictures)]
    assert seen == [layout.ground for layout in layouts]


def test_the_judge_is_taught_the_cell_of_every_centre():
    layouts = [draw_layout(random.Random(seed)) for seed in range(40)]
    for layout, maps in zip(layouts, centres(layouts), strict=True):
        assert (maps == 1).sum() == len(layout.objects)
        for concept, _, _, left, top, side in layout.objects:
            row, column = divmod(int(maps[concept].argmax()), GRID)
            assert column == int((left + side / 2) // STRIDE)
            assert row == int((top + side / 2) // STRIDE)


def test_moved_is_the_mean_distance_between_places_of_the_same_object():
    nan = math.nan
    # two prompts of three pictures; one object at the corners of a 3-4-5 triangle, another found
    # twice, 0.2 apart; nothing found at all
    places = torch.tensor(
        [
            [0.0, 0.0, 0.5, 0.5] + 4 * [nan],
            [0.3, 0.0, nan, nan] + 4 * [nan],
            [0.0, 0.4, 0.5, 0.7] + 4 * [nan],
        ]
        + 3 * [8 * [nan]]
    )
    found = within_prompts({"places": places}, 3)["moved"]
    torch.testing.assert_close(found, torch.tensor([(0.3 + 0.4 + 0.5 + 0.2) / 4, 0.0]).double())


def test_prompts_are_the_same_everywhere_and_not_those_of_training():
    prompts = [prompt.text for prompt in protocol(None).prompts]
    assert prompts == [draw_layout(random.Random(FIRST + i)).prompt for i in range(64)]
