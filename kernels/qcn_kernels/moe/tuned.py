"""The tiles that `tune.py` found fastest on a GPU, kept in a file for each kind of GPU."""

import functools
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import platformdirs
import torch
import triton
from torch import Tensor

from qcn_kernels.chip import capability, configuration
from qcn_kernels.moe.tiles import SHIPPED, Kept, Tile, Tiles, candidates, with_other_down

log = logging.getLogger(__name__)


def tiles_for(x: Tensor, format_name: str) -> Tiles:
    """Return the tiles tuned on x's GPU for weights of a format, or those its chip is shipped."""
    shipped = configuration(SHIPPED, x)[format_name]
    if not x.is_cuda:
        return shipped
    tuned = read(file_of(x.device), capability(x)).get(format_name, shipped)
    return replace(tuned, many_from=shipped.many_from)


def most_many_from(x: Tensor) -> int:
    """Return from how many pairs of an expert on x's chip every format takes tiles for many."""
    return max(tiles.many_from for tiles in configuration(SHIPPED, x).values())


@functools.cache  # each layer of each pass asks
def file_of(device: torch.device) -> Path:
    """Return the file for GPUs of this name, in the user's cache."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name(device))
    return platformdirs.user_cache_path("qcn", appauthor=False) / "tiles" / f"{name}.json"


@functools.cache
def read(path: Path, chip: int) -> Mapping[str, Tiles]:
    """Return what a file holds, by format; nothing if it is not there, or of another Triton.

    A file that cannot be understood, or names a tile that is no candidate on the chip, counts as
    not there, and a warning names it.
    """
    try:
        found = json.loads(path.read_bytes())
        if found["triton"] != triton.__version__:
            return {}
        tuned = {
            name: Tiles(_tile(tiles["few"]), _tile(tiles["many"]))
            for name, tiles in found["formats"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is not used: %r. Delete it, or tune again", path, error)
        return {}
    for name, tiles in tuned.items():
        known = candidates(chip, name)
        known += [other for tile in known for other in with_other_down(tile)]
        if tiles.few not in known or tiles.many not in known:
            log.warning("%s is not used: no such tiles for %s. Tune again", path, name)
            return {}
    return tuned


def _tile(found: dict[str, Any]) -> Tile:
    """The tile that `asdict` gave. Raises KeyError or TypeError for anything else."""
    kept = found["kept"]
    return Tile(**{**found, "kept": kept and Kept(**kept)})


def write(path: Path, tuned: Mapping[str, Tiles]) -> None:
    """Keep tiles for later processes, where the user alone can write. Raises OSError."""
    formats = {
        name: {"few": asdict(tiles.few), "many": asdict(tiles.many)}
        for name, tiles in tuned.items()
    }
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"triton": triton.__version__, "formats": formats}, indent=1))
