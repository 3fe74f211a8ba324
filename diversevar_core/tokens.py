"""What a token is: a row of a codebook, or bits."""

from __future__ import annotations

from typing import NamedTuple


class TokenKind(NamedTuple):
    """How many choices a token (or bit) has, and how many channels a token's features have.

    VAR: (4096, 32), a row of the codebook; Infinity: (2, 32), a bit per channel.
    """

    choices: int
    channels: int

    def __str__(self) -> str:
        if self.choices == 2:
            return f"{self.channels} bits a token"
        return f"a codebook of {self.choices} rows of {self.channels}"
