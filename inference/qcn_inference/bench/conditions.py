"""What a figure depends on beside the code: the machine, versions, the command, the date."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from qcn_inference import device

PACKAGES = ("torch", "triton", "transformers", "flash-linear-attention", "fla-core")


def conditions(on: torch.device) -> dict[str, Any]:
    """Return what stands at the head of a result; for JSON."""
    versions = {"python": platform.python_version()}
    versions |= {name: known for name in PACKAGES if (known := _version(name))}
    if on.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "device": device.describe(on),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
