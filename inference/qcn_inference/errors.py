"""What the engine raises when a file from outside is not what it should be."""

from pathlib import Path


class CheckpointError(Exception):
    """A checkpoint or saved state that cannot be loaded.

    `str()` is one readable passage: the file, what is wrong with it, and what to do.
    """

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}. {remedy}.")
        self.path = path
        self.problem = problem
        self.remedy = remedy


class DeviceError(Exception):
    """A GPU that cannot be used, or not any more; `str()` says why and what to do."""


class DeviceMemoryError(DeviceError):
    """What was asked for does not fit the GPU's memory; what fits can still be asked for."""
