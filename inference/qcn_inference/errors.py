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
