"""``torch.nn``'s layers without the initialisation that is slow, as weights come from a file.

Only the embedding's is slow: on the meta device it imports torch._dynamo, which takes a second.
"""

from torch import nn
from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear

__all__ = ["Conv2d", "Embedding", "GroupNorm", "LayerNorm", "Linear"]


class Embedding(nn.Embedding):
    """An embedding that is not initialised."""

    def reset_parameters(self) -> None:
        pass
