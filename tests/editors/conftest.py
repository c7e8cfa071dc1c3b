"""The fixtures that the editor tests use."""

from link_support import runtime
from neovim_support import project

__all__ = ["project", "runtime"]
