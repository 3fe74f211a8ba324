"""Empty stand-ins for torchvision and torchaudio, which ComfyUI imports and our tests never use.

Neither has a build for the tests' torch on a CPU. Imported at start-up by ``stand_ins.pth``.
"""

import importlib.abc
import importlib.machinery
import sys
import types

NAMES = ("torchvision", "torchaudio")


class StandIn(types.ModuleType):
    """A module in which every name is another stand-in."""

    __version__ = "0"  # transformers compares it

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers the imports of NAMES and everything below them."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Finder())
