"""The fixtures that the feature tests use."""

from features_support import model, sessions, start

__all__ = ["model", "sessions", "start"]
