"""The fixtures that the editor tests use."""

from link_support import runtime

__all__ = ["runtime"]
