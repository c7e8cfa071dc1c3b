"""The fixtures that the tests of the commands use."""

from link_support import embedded, runtime, standin

__all__ = ["embedded", "runtime", "standin"]
