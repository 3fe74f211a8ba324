"""The model families, one transformer each."""

from .family import Family
from .infinity import Infinity
from .var import VAR

FAMILIES: tuple[type[Family], ...] = (VAR, Infinity)
