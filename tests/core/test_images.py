"""Contact sheets and their captions."""

import pytest
import torch

from diversevar_core.images import CELL, FONTS, GAP, Row, caption, contact_sheet, font_of

SIDE = CELL + 2 * GAP


def test_captions_are_whole_however_long_they_are():
    """A long prompt takes lines, each within the width; nothing is cut off at the edge."""
    short = caption("octopus", 40, 600)
    assert short.shape == (3, 40, 600)
    long = caption("a lighthouse on a cliff above a stormy sea, photograph, " * 5, 40, 600)
    assert long.shape[1] > 4 * 40 and (long[:, :, -5:] == 1).all()
    assert all((line < 0.5).any() for line in long.split(40, dim=1))
    unbroken = caption("x" * 300, 40, 600)
    assert unbroken.shape[1] > 2 * 40 and (unbroken[:, :, -5:] == 1).all()


def test_chinese_and_japanese_captions_are_letters():
    if font_of("狐", 20).getname() == font_of("fox", 20).getname():
        pytest.skip(f"this system has none of {FONTS}")
    assert not torch.equal(caption("狐", 40, 100), caption("猫", 40, 100))  # not two empty boxes


def test_images_are_as_large_as_their_cells_whatever_their_shape():
    """The largest image fills its cell; a smaller one keeps its shape, and is in the middle."""
    wide, small = torch.zeros(3, 100, 200), torch.zeros(3, 40, 40)
    sheet = contact_sheet([Row("", [wide, small], ["seed 5", "seed 6"])])
    assert sheet.shape[2] == 2 * SIDE
    first, second = ((part == 0).all(dim=0) for part in sheet[:, : CELL // 2 + GAP].split(SIDE, 2))
    assert first.sum() == CELL * CELL // 2
    assert second.sum() == (CELL // 2) ** 2
    columns = second.any(dim=0).nonzero()
    assert columns.min() + columns.max() == SIDE - 1
