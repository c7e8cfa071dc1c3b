"""What all tests share: sample sizes, and what is skipped where it cannot run."""

import importlib.util
import os
from collections.abc import Iterator

import pytest
import sampling  # noqa: F401 - its profile holds for every property


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_users_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever a test starts inherits a cache directory of the session's own, and git as it comes.

    A user's or a machine's hooks, signing, line ends or templates would be in every repository.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield


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
