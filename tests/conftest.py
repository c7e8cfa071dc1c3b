"""What all tests share: sample sizes, and what is skipped where it cannot run."""

import importlib.util
import os
import platform
from collections.abc import Generator, Iterator

import pytest
import sampling  # noqa: F401 - its profile holds for every property

# Triton's interpreter multiplies by numpy's OpenBLAS, whose code for AVX2 (an AMD processor's, say)
# adds up an element of a product in an order that depends on its row. This code's does not. It is
# chosen when numpy is imported, in this process and in all that it starts.
if platform.machine().lower() in ("x86_64", "amd64"):
    os.environ["OPENBLAS_CORETYPE"] = "Sandybridge"

GPU_LOST = pytest.StashKey[bool]()


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
    """Skip tests marked `gpu` on a machine without a GPU that our kernels run on."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    if importlib.util.find_spec("torch"):
        import torch

        if torch.version.cuda is not None and torch.cuda.is_available():
            from qcn_inference.device import LEAST_CAPABILITY

            if torch.cuda.get_device_capability() >= LEAST_CAPABILITY:
                return
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason="no CUDA device that is new enough"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test's process has lost the GPU."""
    if call.excinfo is not None and item.get_closest_marker("gpu"):
        from qcn_inference.device import is_lost

        item.stash[GPU_LOST] = is_lost(call.excinfo.value) or item.stash.get(GPU_LOST, False)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End a process that has lost the GPU: whatever else it ran there would fail as well.

    Where pytest has workers, another takes its place and goes on with the next test.
    """
    result = yield
    if item.stash.get(GPU_LOST, False):
        if hasattr(item.config, "workerinput"):
            os._exit(1)
        pytest.exit(f"{item.nodeid} has lost the GPU for this process", returncode=1)
    return result
