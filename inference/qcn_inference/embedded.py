"""The model that comes with the package, and how commands name models."""

from pathlib import Path

EMBEDDED = "qcn-nano"


def checkpoint_folder(model: str) -> Path:
    """Return the folder of a model: the embedded one's by its name, else the path it is."""
    if model == EMBEDDED:
        return Path(__file__).parent / "data" / EMBEDDED
    return Path(model).expanduser().absolute()
