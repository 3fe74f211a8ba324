"""``torch.nn``'s layers for modules whose weights come from a file, so that none is initialised.

Only the embedding's initialisation costs: on the meta device it imports torch._dynamo, a second.
"""

from torch import nn
from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear

__all__ = ["Conv2d", "Embedding", "GroupNorm", "LayerNorm", "Linear"]


class Embedding(nn.Embedding):
    """Left as allocated."""

    def reset_parameters(self) -> None:
        pass
