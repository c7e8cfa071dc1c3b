"""What all tests share: sample sizes, and what is skipped where it cannot run."""

import importlib.util

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` on a machine without a CUDA device."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    if importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            return
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
