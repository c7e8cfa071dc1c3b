"""The models whose shapes come with the package: published ones, and the embedded one."""

from pathlib import Path

from qcn_inference.embedded import EMBEDDED, checkpoint_folder

PUBLISHED = Path(__file__).parents[1] / "data" / "shapes"
SHAPES = (*sorted(PUBLISHED.iterdir()), checkpoint_folder(EMBEDDED))
"""Folders with a `config.json`; of the published models there is nothing else in them."""
