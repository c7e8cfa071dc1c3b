"""The runtime directory is private, and its sockets' paths fit the system's limit."""

import importlib.util
import os
import stat
from pathlib import Path

import pytest

from qcn_lsp.engine.messages import EngineUnavailable
from qcn_lsp.engine.runtime import (
    MAX_SOCKET_PATH_BYTES,
    UnixAddress,
    address_at,
    engine_key,
    resolve_model,
    runtime_directory,
    same_model,
)


def test_it_is_below_xdg_runtime_dir_and_for_its_owner_alone(runtime: Path) -> None:
    directory = runtime_directory()
    assert directory == runtime / "qcn"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_one_that_others_may_read_is_closed_to_them(runtime: Path) -> None:
    (runtime / "qcn").mkdir(mode=0o755)
    assert stat.S_IMODE(runtime_directory().stat().st_mode) == 0o700


@pytest.mark.parametrize("depth", [1, 10, 60])
def test_every_socket_path_fits_however_long_the_given_directory_is(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    deep = runtime.joinpath(*["long"] * depth)
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr("tempfile.tempdir", str(runtime))
    address = address_at(runtime_directory(), engine_key("m"), tcp=False)
    assert isinstance(address, UnixAddress)
    assert len(os.fsencode(address.socket)) <= MAX_SOCKET_PATH_BYTES


@pytest.mark.parametrize("unsafe", ["writable by others", "a link", "a file"])
def test_one_that_others_could_have_prepared_is_not_used(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, unsafe: str
) -> None:
    place = runtime / "qcn"
    match unsafe:
        case "writable by others":
            place.mkdir()
            place.chmod(0o777)
        case "a link":
            (runtime / "elsewhere").mkdir(mode=0o700)
            place.symlink_to(runtime / "elsewhere")
        case "a file":
            place.touch()
    monkeypatch.setattr("tempfile.tempdir", str(runtime))
    assert runtime_directory() == runtime / f"qcn-{os.getuid()}"


def test_where_it_cannot_be_made_another_is_used(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/sys")  # nobody makes folders there, nor does root
    monkeypatch.setattr("tempfile.tempdir", str(runtime))
    assert runtime_directory() == runtime / f"qcn-{os.getuid()}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_where_it_cannot_be_written_another_is_used(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runtime / "qcn").mkdir(mode=0o500)
    monkeypatch.setattr("tempfile.tempdir", str(runtime))
    assert runtime_directory() == runtime / f"qcn-{os.getuid()}"


def test_without_any_safe_directory_the_message_says_what_to_set(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The owner of what is there is somebody else than the user that asks.
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative/paths/are/ignored")
    monkeypatch.setattr("tempfile.tempdir", str(runtime))
    nobody = 2**31 + os.getpid()  # another one in each process that runs this test
    monkeypatch.setattr("os.getuid", lambda: nobody)
    for folder in (runtime, Path("/tmp")):
        (folder / f"qcn-{nobody}").mkdir(mode=0o700)
    try:
        with pytest.raises(EngineUnavailable, match=r"another user.*Set XDG_RUNTIME_DIR"):
            runtime_directory()
    finally:
        Path(f"/tmp/qcn-{nobody}").rmdir()


def test_a_model_has_one_key_however_its_folder_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = {engine_key(resolve_model(name)) for name in ("m", "~/m", str(tmp_path / "m"))}
    assert len(keys) == 1
    assert engine_key(resolve_model("qcn-nano")) not in keys


def test_the_embedded_models_name_and_its_folder_are_one_model(tmp_path: Path) -> None:
    package = importlib.util.find_spec("qcn_inference")
    assert package is not None
    assert package.origin is not None
    folder = str(Path(package.origin).parent / "data" / "qcn-nano")
    assert same_model(resolve_model("qcn-nano"), folder)
    assert same_model(resolve_model(folder), folder)
    assert not same_model(resolve_model("qcn-nano"), str(tmp_path / "qcn-nano"))
