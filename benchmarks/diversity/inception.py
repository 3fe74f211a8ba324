"""The Inception network whose features FID is measured in.

Szegedy et al., arXiv 1512.00567, with the weights of Google's 2015-12-05 release as
``pt_inception-2015-12-05-6726825d.pth`` holds them, a plain state dict (from the releases of
mseitzer/pytorch-fid; torch-fidelity and torchmetrics read the same file). Widths are the file's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SIDE = 299


def prepare(picture: Image.Image) -> Tensor:
    """The picture's central square -> (3, 299, 299) in 0..255.

    Bicubic with antialiasing in float32, as clean-fid resizes (Parmar et al., arXiv 2104.11222).
    """
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.convert("RGB").crop((left, top, left + side, top + side))
    channels = (
        Image.fromarray(channel).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for channel in np.asarray(square, np.float32).transpose(2, 0, 1).copy()
    )
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))


@dataclass(frozen=True)
class Inception:
    """The network up to its last pooling; call it with pictures."""

    weights: Mapping[str, Tensor]

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Features (B, 2048) of pictures (B, 3, 299, 299) in 0..255."""
        x = (pictures - 128) / 128
        x = self.conv(x, "Conv2d_1a_3x3", stride=2)
        x = self.conv(x, "Conv2d_2a_3x3", padded=False)
        x = self.conv(x, "Conv2d_2b_3x3")
        x = F.max_pool2d(x, 3, stride=2)
        x = self.conv(x, "Conv2d_3b_1x1")
        x = self.conv(x, "Conv2d_4a_3x3", padded=False)
        x = F.max_pool2d(x, 3, stride=2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.mixed(x, name, branch5x5=2, branch3x3dbl=3)
        x = self.reduced(x, "Mixed_6a", branch3x3=0, branch3x3dbl=3)
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.mixed(x, name, branch7x7=3, branch7x7dbl=5)
        x = self.reduced(x, "Mixed_7a", branch3x3=2, branch7x7x3=4)
        x = self.widened(x, "Mixed_7b", average)
        x = self.widened(x, "Mixed_7c", largest)
        return x.mean(dim=(2, 3))

    def conv(self, x: Tensor, name: str, stride: int = 1, padded: bool = True) -> Tensor:
        """Convolution, normalization, ReLU; padded to keep the size, except where it strides."""
        kernel = self.weights[f"{name}.conv.weight"]
        padding = [side // 2 if padded and stride == 1 else 0 for side in kernel.shape[2:]]
        x = F.conv2d(x, kernel, stride=stride, padding=padding)
        mean, variance, gain, bias = (
            self.weights[f"{name}.bn.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, variance, gain, bias, eps=0.001))

    def path(self, x: Tensor, name: str, convolutions: int, stride: int = 1) -> Tensor:
        """Convolutions ``name_1``, ``name_2``, ... (0: ``name`` alone), the last one strided."""
        if convolutions == 0:
            return self.conv(x, name, stride)
        for i in range(1, convolutions):
            x = self.conv(x, f"{name}_{i}")
        return self.conv(x, f"{name}_{convolutions}", stride)

    def mixed(self, x: Tensor, name: str, **paths: int) -> Tensor:
        """A block that keeps the size: paths by their number of convolutions, and a pooled one."""
        found = [self.conv(x, f"{name}.branch1x1")]
        found += [self.path(x, f"{name}.{path}", count) for path, count in paths.items()]
        return torch.cat((*found, self.conv(average(x), f"{name}.branch_pool")), dim=1)

    def reduced(self, x: Tensor, name: str, **paths: int) -> Tensor:
        """A block that halves the size."""
        found = [self.path(x, f"{name}.{path}", count, stride=2) for path, count in paths.items()]
        return torch.cat((*found, F.max_pool2d(x, 3, stride=2)), dim=1)

    def widened(self, x: Tensor, name: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """A last block: two paths end in a wide and a high convolution side by side."""
        short = self.conv(x, f"{name}.branch3x3_1")
        long = self.path(x, f"{name}.branch3x3dbl", 2)
        return torch.cat(
            (
                self.conv(x, f"{name}.branch1x1"),
                *(self.conv(short, f"{name}.branch3x3_2{side}") for side in "ab"),
                *(self.conv(long, f"{name}.branch3x3dbl_3{side}") for side in "ab"),
                self.conv(pool(x), f"{name}.branch_pool"),
            ),
            dim=1,
        )


def average(x: Tensor) -> Tensor:
    """3 x 3 average that does not count the padding, as TensorFlow's."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def largest(x: Tensor) -> Tensor:
    """3 x 3 maximum, which this release has in its last block where the paper has an average."""
    return F.max_pool2d(x, 3, stride=1, padding=1)
