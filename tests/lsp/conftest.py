"""The fixtures that the tests of the server use."""

from link_support import runtime, standin

__all__ = ["runtime", "standin"]
