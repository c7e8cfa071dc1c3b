"""What the engine raises when a file from outside is not what it should be."""

from pathlib import Path

LOST_REMEDY = (
    "Look for Xid messages in the kernel's log and at nvidia-smi, then start the engine again; "
    "where that does not help, or the machine has slept, restart it."
)


class CheckpointError(Exception):
    """A checkpoint or saved state that cannot be loaded.

    `str()` is one readable passage: the file, what is wrong with it, and what to do.
    """

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}. {remedy}.")
        self.path = path
        self.problem = problem
        self.remedy = remedy


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error of a file that is there and that the system does not let us read."""
    return CheckpointError(
        path,
        f"cannot be read ({error.strerror or error})",
        "See to it that you may read it, and that its disk is in order",
    )


def not_converted(gguf: Path) -> CheckpointError:
    """The error of a GGUF file that is named where a checkpoint's folder is expected."""
    return CheckpointError(
        gguf,
        "GGUF files are converted once, not served as they are",
        f"Run `qcn models convert {gguf} FOLDER` and serve FOLDER",
    )


class DeviceError(Exception):
    """A GPU that cannot be used, or not any more; `str()` says why and what to do."""


class DeviceMemoryError(DeviceError):
    """What was asked for does not fit the GPU's memory; what fits can still be asked for."""
