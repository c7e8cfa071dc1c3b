"""Every test here that asks for `call` runs interpreted, and on a GPU where there is one."""

from importlib.util import find_spec

if find_spec("triton") is None:  # there is none for macOS and Windows
    collect_ignore_glob = ["test_*.py"]
else:
    from triton_fixtures import call, interpreter, on_gpu  # noqa: F401  # fixtures
