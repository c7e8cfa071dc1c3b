"""`python -m qcn_inference.download`: what comes from the Hub is whole, or not kept."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, Hub, hub
from filelock import FileLock
from huggingface_hub import constants
from qcn_inference import download as downloading
from qcn_inference.checkpoint import load_model
from qcn_inference.download import Downloaded, DownloadError, download
from qcn_inference.errors import CheckpointError

from benchmarks.checkpoints import NANO

CHECKPOINT = {path.name: path.read_bytes() for path in NANO.iterdir() if path.is_file()}
BESIDE = {
    ".gitattributes": b"*.safetensors filter=lfs",
    "pytorch_model.bin": b"a pickle",
    "modeling.py": b"raise SystemExit",
    "original/model.safetensors": b"another form of the same",
}
WEIGHTS = "model.safetensors"


@pytest.fixture
def nano(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub(CHECKPOINT | BESIDE) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        yield served


def get(folder: Path, name: str = "Qwen/Tiny", gguf: str | None = None) -> Downloaded:
    return download(name, folder, lambda *_: None, gguf=gguf)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_comes_is_the_checkpoint_and_no_pickle_and_no_code(nano: Hub, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    done = download("Qwen/Tiny", tmp_path, lambda *each: told.append(each), gguf=None)
    size = sum(map(len, CHECKPOINT.values()))
    assert done == Downloaded(COMMIT, size, convert=None, was_there=False)
    here = files_in(tmp_path)
    assert json.loads(here.pop(downloading.MARKER))["commit"] == COMMIT
    assert here == CHECKPOINT
    assert load_model(tmp_path).config == load_model(NANO).config
    assert told[0] == ("Downloading", 0, size)
    assert told[-1] == ("Downloading", size, size)
    counts = [count for _, count, _ in told]
    assert counts == sorted(counts)


def test_a_second_run_fetches_no_weights(nano: Hub, tmp_path: Path) -> None:
    get(tmp_path)
    nano.asked.clear()
    assert get(tmp_path).was_there
    assert not [path for path in nano.paths_asked() if WEIGHTS in path]


def test_a_connection_that_breaks_again_and_again_is_made_anew(nano: Hub, tmp_path: Path) -> None:
    nano.broken_after = len(CHECKPOINT[WEIGHTS]) // 3
    get(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == CHECKPOINT[WEIGHTS]
    ranges = [asked for path, asked, _ in nano.asked if path == f"/{WEIGHTS}"]
    assert ranges[0] is None
    assert len(ranges) == 4
    assert all(asked and asked.startswith("bytes=") for asked in ranges[1:])


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_it_goes_on_within_a_file(nano: Hub, tmp_path: Path, knows_ranges: bool) -> None:
    nano.broken_after = 0  # not a byte
    with pytest.raises(DownloadError, match=r"cannot be reached .* goes on where it stopped"):
        get(tmp_path)
    assert not (tmp_path / "config.json").exists()
    half = len(CHECKPOINT[WEIGHTS]) // 2
    (tmp_path / (WEIGHTS + downloading.PART)).write_bytes(CHECKPOINT[WEIGHTS][:half])
    nano.broken_after, nano.knows_ranges = None, knows_ranges
    nano.asked.clear()
    get(tmp_path)
    assert (f"/{WEIGHTS}", f"bytes={half}-", None) in nano.asked
    assert (tmp_path / WEIGHTS).read_bytes() == CHECKPOINT[WEIGHTS]
    assert not list(tmp_path.glob(f"*{downloading.PART}"))


def test_bytes_that_are_not_the_hubs_are_not_kept(nano: Hub, tmp_path: Path) -> None:
    weights = bytearray(CHECKPOINT[WEIGHTS])
    weights[len(weights) // 2] ^= 1
    nano.served[WEIGHTS] = bytes(weights)
    with pytest.raises(DownloadError, match=f"{WEIGHTS}: .* digest"):
        get(tmp_path)
    assert not list(tmp_path.glob(f"{WEIGHTS}*"))
    assert not (tmp_path / "config.json").exists()
    nano.served.clear()
    get(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == CHECKPOINT[WEIGHTS]


def test_a_changed_text_is_not_kept_either(nano: Hub, tmp_path: Path) -> None:
    nano.served["config.json"] = CHECKPOINT["config.json"].replace(b"0", b"1", 1)
    with pytest.raises(DownloadError, match=r"config\.json: .* digest"):
        get(tmp_path)
    assert not [path for path in nano.paths_asked() if WEIGHTS in path]


def test_it_stays_with_the_commit_that_it_began(nano: Hub, tmp_path: Path) -> None:
    nano.broken_after = 0
    with pytest.raises(DownloadError):
        get(tmp_path)
    nano.broken_after = None
    nano.asked.clear()
    get(tmp_path)
    assert nano.paths_asked()[0].endswith(f"/revision/{COMMIT}")


def test_the_users_token_goes_to_the_hub_and_to_no_other_host(
    nano: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nano.token = "hf_of_the_user"
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(DownloadError, match="HF_TOKEN"):
        get(tmp_path / "without")
    monkeypatch.setenv("HF_TOKEN", nano.token)
    nano.asked.clear()
    get(tmp_path / "with")
    given = {path == f"/{WEIGHTS}": token for path, _, token in nano.asked}
    assert given == {True: None, False: "Bearer hf_of_the_user"}


def test_a_model_that_is_not_served_is_refused_before_its_weights(
    nano: Hub, tmp_path: Path
) -> None:
    other = json.loads(CHECKPOINT["config.json"]) | {"model_type": "llama"}
    nano.files["config.json"] = json.dumps(other).encode()
    with pytest.raises(CheckpointError, match=r"Qwen/Tiny/config\.json: .*llama"):
        get(tmp_path)
    assert not [path for path in nano.paths_asked() if WEIGHTS in path]


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_what_is_to_be_converted_says_so(nano: Hub, tmp_path: Path, method: str) -> None:
    quantisation = {"quantization_config": {"quant_method": method, "bits": 4}}
    packed = json.loads(CHECKPOINT["config.json"]) | quantisation
    nano.files["config.json"] = json.dumps(packed).encode()
    assert get(tmp_path).convert == "."


GGUFS = {
    "Tiny-Q4_K_M.gguf": b"four bits",
    "Q8_0/Tiny-Q8_0-00001-of-00002.gguf": b"eight",
    "Q8_0/Tiny-Q8_0-00002-of-00002.gguf": b"bits",
    "README.md": b"which is which",
}


@pytest.mark.parametrize(
    ("part", "files"),
    [
        ("q4_k_m", ["Tiny-Q4_K_M.gguf"]),
        ("Q8", ["Tiny-Q8_0-00001-of-00002.gguf", "Tiny-Q8_0-00002-of-00002.gguf"]),
    ],
)
def test_one_gguf_of_several_is_taken_whole(
    nano: Hub, tmp_path: Path, part: str, files: list[str]
) -> None:
    nano.files = GGUFS
    assert get(tmp_path, gguf=part).convert == files[0]
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == files


@pytest.mark.parametrize("part", [None, "Tiny", "Q2"])
def test_which_gguf_there_are_is_told(nano: Hub, tmp_path: Path, part: str | None) -> None:
    nano.files = GGUFS
    with pytest.raises(DownloadError, match=r"--gguf.* Q8_0/Tiny-Q8_0 \(.*Tiny-Q4_K_M\.gguf \("):
        get(tmp_path, gguf=part)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Qwen", "is no name of the Hub's"),
        ("Qwen/../../secret", "is no name of the Hub's"),
        ("Qwen/Unknown", "Qwen/Unknown: the Hub does not know it"),
        ("Qwen/Tiny@gone", "Qwen/Tiny: the Hub does not know it"),
    ],
)
def test_a_name_that_is_none_is_told(nano: Hub, tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(DownloadError, match=told):
        get(tmp_path, name)


@pytest.mark.parametrize(
    "path", ["../model.safetensors", "a\\..\\m.safetensors", "..", "/etc/m.json"]
)
def test_a_name_that_leads_elsewhere_is_never_written(nano: Hub, tmp_path: Path, path: str) -> None:
    nano.files = CHECKPOINT | {path: b"where it should not be"}
    folder = tmp_path / "in" / "here"
    get(folder)
    assert files_in(folder).keys() == CHECKPOINT.keys() | {downloading.MARKER}
    assert [each for each in tmp_path.rglob("*") if each.is_file() and each.parent != folder] == []


def test_pickles_alone_are_no_checkpoint(nano: Hub, tmp_path: Path) -> None:
    nano.files = {"pytorch_model.bin": b"a pickle", "config.json": CHECKPOINT["config.json"]}
    with pytest.raises(DownloadError, match="has no weights in safetensors or GGUF"):
        get(tmp_path)


def test_a_disk_without_room_is_told_before(
    nano: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    with pytest.raises(DownloadError, match=r"GB are to come, and its disk has 0\.0 GB left"):
        get(tmp_path)
    assert not [path for path in nano.paths_asked() if WEIGHTS in path]


def test_a_folder_of_something_else_is_left_alone(nano: Hub, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DownloadError, match="is not empty"):
        get(tmp_path)
    nano.files = GGUFS
    get(tmp_path / "model", gguf="Q4")
    with pytest.raises(DownloadError, match="is of Qwen/Tiny"):
        get(tmp_path / "model", gguf="Q8")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_killed_in_its_first_step_it_goes_on(nano: Hub, tmp_path: Path) -> None:
    (tmp_path / (downloading.MARKER + downloading.PART)).write_text('{"of": "Qw')
    get(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == CHECKPOINT[WEIGHTS]


def test_two_at_once_are_refused(nano: Hub, tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / downloading.LOCK),
        pytest.raises(DownloadError, match="another download is writing there"),
    ):
        get(tmp_path)


def test_no_connection_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub({}) as gone:
        monkeypatch.setattr(constants, "ENDPOINT", gone.url)
    with pytest.raises(DownloadError, match="cannot be reached"):
        get(tmp_path)


def test_what_is_no_hub_is_told(nano: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano, "listing", lambda: ["a proxy's page"])
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        get(tmp_path)
