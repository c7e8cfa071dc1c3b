"""`python -m qcn_inference.convert`: 4-bit experts, resumed after anything, behind a bound."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from oracle import Oracle
from qcn_inference import convert as conversion
from qcn_inference.checkpoint import load_model
from qcn_inference.convert import ConversionError, Report, convert
from qcn_inference.divergence import Divergence, divergences
from qcn_inference.errors import CheckpointError
from qcn_inference.planning.onto_gpu import footprint_of
from qcn_kernels.groupwise import GroupwiseMatrices, quantise
from random_checkpoints import (
    Config,
    draw_config,
    draw_qwen3_5,
    draw_tensors,
    pack_experts,
    wrap,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.checkpoints import NANO

CONFIG: Config = draw_config(3) | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "mlp_only_layers": [],
    "vocab_size": 8192,  # of the tokenizer that comes with it
}
IDS = torch.arange(60)
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32]}


def to_int4(origin: Path, folder: Path, report: Report = lambda *_: None) -> Path:
    convert(origin, folder, report, int4=True, threads=2)
    return folder


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from qcn_inference.convert import convert
moment, time, origin, folder = sys.argv[1:]
seen = []
def step(what, *_):
    seen.append(what)
    if sum(each.startswith(moment) for each in seen) == int(time):
        os.kill(os.getpid(), signal.SIGKILL)
fsync = os.fsync
os.fsync = lambda descriptor: (step("write"), fsync(descriptor))
convert(Path(origin), Path(folder), step, int4=True, threads=2)
"""


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    tensors = draw_tensors(CONFIG, 3, deviation=0.05)
    return with_tokenizer(write_checkpoint(tmp_path / "origin", CONFIG, tensors))


def with_tokenizer(folder: Path) -> Path:
    shutil.copy(NANO / "tokenizer.json", folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def experts_rounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors, with those of experts as four bits leave them."""
    return {
        name: quantise(tensor, torch.float32).dequantised()[0] if ".experts." in name else tensor
        for name, tensor in tensors.items()
    }


class TestTheModel:
    @pytest.mark.parametrize("packed", [False, True])
    def test_agrees_with_transformers_on_the_dequantised_weights(
        self, packed: bool, tmp_path: Path
    ) -> None:
        tensors = draw_tensors(CONFIG, 3, deviation=0.05)
        stored = pack_experts(CONFIG, tensors) if packed else tensors
        origin = with_tokenizer(write_checkpoint(tmp_path / "origin", CONFIG, stored, shards=3))
        copy = load_model(to_int4(origin, tmp_path / "copy"))
        plain = write_checkpoint(tmp_path / "plain", CONFIG, experts_rounded(tensors))
        want, _ = Oracle(plain).prefill(IDS)
        got = copy.prefill(IDS, copy.new_state(), all_logits=True)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
        state = copy.new_state()
        step = torch.stack([copy.decode(token, state) for token in IDS.tolist()])
        torch.testing.assert_close(step, want, atol=1e-4, rtol=0)

    def test_beside_a_vision_tower_agrees_too(self, tmp_path: Path) -> None:
        sizes = ("hidden_size", "moe_intermediate_size", "num_experts", "vocab_size")
        config = draw_qwen3_5(3, dense=False) | {key: CONFIG[key] for key in sizes}
        config |= {"num_experts_per_tok": CONFIG["num_experts_per_tok"]}
        tensors = draw_tensors(config, 3, deviation=0.05)
        plain = write_checkpoint(tmp_path / "plain", config, experts_rounded(tensors))
        want, _ = Oracle(plain).prefill(IDS)
        origin = with_tokenizer(write_checkpoint(tmp_path / "origin", *wrap(config, tensors)))
        copy = load_model(to_int4(origin, tmp_path / "copy"))
        got = copy.prefill(IDS, copy.new_state(), all_logits=True)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)

    def test_of_an_fp8_checkpoint_is_planned_with_experts_of_4_bits(self, tmp_path: Path) -> None:
        config = CONFIG | {"quantization_config": FP8 | {"weight_block_size": [128, 128]}}
        tensors = draw_tensors(CONFIG, 3, deviation=0.05)
        origin = with_tokenizer(write_checkpoint(tmp_path / "origin", config, tensors))
        copy = to_int4(origin, tmp_path / "copy")
        before, after = footprint_of(origin), footprint_of(copy)
        # A block is only 64 columns here: 4 bits, 2 · 8 to a group of 32, 2 · 16 to a block.
        assert after.format == replace(before.format, name="int4", expert_bits=4 + 0.5 + 0.5)
        on_cpu = after.format.on_cpu()
        assert (on_cpu.expert_bits, on_cpu.other_bits) == (5, 16)

    def test_of_an_fp8_checkpoint_keeps_its_8_bits_elsewhere(self, tmp_path: Path) -> None:
        tensors = draw_tensors(CONFIG, 3, deviation=0.05)
        stored, plain = dict(tensors), dict(tensors)
        for name, tensor in tensors.items():
            if "proj.weight" in name and "shared" not in name:
                rows, columns = (-(-size // 32) for size in tensor.shape)
                scale = torch.full((rows, columns), 2.0**-9)
                stored[name] = (tensor * 2**9).to(torch.float8_e4m3fn)
                stored[f"{name}_scale_inv"] = scale
                plain[name] = stored[name].float() * 2**-9
        config = CONFIG | {"quantization_config": FP8}
        origin = with_tokenizer(write_checkpoint(tmp_path / "origin", config, stored))
        folder = to_int4(origin, tmp_path / "copy")
        name = "model.layers.1.self_attn.q_proj.weight"
        found = load_file(folder / "model-00003-of-00003.safetensors")
        assert found[name].dtype == torch.float8_e4m3fn
        kept = write_checkpoint(tmp_path / "plain", CONFIG, experts_rounded(plain))
        want, _ = Oracle(kept).prefill(IDS)
        copy = load_model(folder, dtype=torch.float32)
        got = copy.prefill(IDS, copy.new_state(), all_logits=True)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)

    def test_has_experts_of_4_bits_and_all_else_as_it_was(
        self, origin: Path, tmp_path: Path
    ) -> None:
        copy = to_int4(origin, tmp_path / "copy")
        found: dict[str, Tensor] = {}
        for path in copy.glob("*.safetensors"):
            found |= load_file(path)
        original = load_file(origin / "model.safetensors")
        others = {name for name in original if ".experts." not in name}
        assert {name for name in found if ".experts." not in name} == others
        assert all(torch.equal(found[name], original[name]) for name in others)
        experts = sum(t.nbytes for name, t in found.items() if ".experts." in name)
        weights = sum(t.numel() for name, t in original.items() if ".experts." in name)
        # A block is only 64 columns here: 4 bits, 2 · 8 to a group of 32, 2 · 16 to a block.
        assert experts * 8 == weights * (4 + 16 / 32 + 32 / 64)


class TestTheGate:
    def test_divergence_is_that_of_torch(self) -> None:
        p, q = 3 * torch.randn(150, 40), 3 * torch.randn(150, 40)
        want = torch.nn.functional.kl_div(
            q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        torch.testing.assert_close(divergences(p, q), want, atol=1e-5, rtol=1e-5)
        assert divergences(p, p).abs().max() == 0

    @pytest.mark.parametrize(
        ("mean", "percentile", "exceeds"),
        [(0.1, 0.2, False), (0.11, 0.2, True), (0.1, 0.21, True), (float("nan"), 0.1, True)],
    )
    def test_both_figures_count(self, mean: float, percentile: float, exceeds: bool) -> None:
        bound = Divergence(0.1, 0.2, 0)
        assert Divergence(mean, percentile, 9).exceeds(bound) == exceeds

    def test_a_copy_that_is_too_far_off_is_not_completed(
        self, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = tmp_path / "copy"
        with monkeypatch.context() as patch:
            patch.setattr(conversion, "BOUND", Divergence(1e-9, 1e-9, 0))
            with pytest.raises(ConversionError, match=r"too far from its original.* not completed"):
                to_int4(origin, copy)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_model(copy)
        to_int4(origin, copy)
        recorded = json.loads((copy / "config.json").read_bytes())["quantization_config"]
        assert 0 < recorded["kl_divergence"]["mean"] < recorded["kl_divergence"]["percentile_99"]
        assert recorded["kl_divergence"]["tokens"] == 1024

    def test_what_was_spoilt_is_too_far_off(
        self, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bound as it is shipped, and one expert's scales halved."""

        def spoilt(weights: Tensor, dtype: torch.dtype) -> GroupwiseMatrices:
            return quantise(20 * weights, dtype)

        monkeypatch.setattr("qcn_inference.formats.quantised.quantise", spoilt)
        with pytest.raises(ConversionError, match="too far from its original"):
            to_int4(origin, tmp_path / "copy")


@dataclass(frozen=True)
class Whole:
    """A checkpoint, and the files of a copy that nothing interrupted."""

    origin: Path
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    tensors = draw_tensors(CONFIG, 3, deviation=0.05)
    origin = with_tokenizer(write_checkpoint(folder / "origin", CONFIG, tensors))
    return Whole(origin, contents(to_int4(origin, folder / "copy")))


class TestInterruption:
    @pytest.mark.parametrize(
        ("moment", "time"),
        [
            ("Embeddings and head", 2),
            ("Layer 2 of 2", 2),
            ("Comparing", 2),
            ("write", 1),
            ("write", 2),
        ],
    )
    def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
        self, moment: str, time: int, whole: Whole, tmp_path: Path
    ) -> None:
        """At the second report of an activity, or with the first or second file not yet renamed."""
        copy = tmp_path / "copy"
        given = [moment, str(time), str(whole.origin), str(copy)]
        killed = subprocess.run([sys.executable, "-c", KILLED_AT, *given])
        assert killed.returncode == -signal.SIGKILL
        assert not (copy / "config.json").exists()
        assert bool(list(copy.glob("*.part"))) == (moment == "write")
        done = {path: path.stat().st_mtime_ns for path in copy.glob("*.safetensors")}
        assert len(done) == {"Embeddings and head": 0, "write": 0, "Layer 2 of 2": 2}.get(moment, 3)
        to_int4(whole.origin, copy)
        assert contents(copy) == whole.files
        assert all(path.stat().st_mtime_ns == at for path, at in done.items())

    def test_asked_for_again_a_finished_copy_is_left_as_it_is(
        self, whole: Whole, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        first = convert(whole.origin, copy, lambda *_: None, int4=True, threads=2)
        times = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
        again = convert(whole.origin, copy, lambda *_: None, int4=True, threads=2)
        assert (first.was_there, again.was_there) == (False, True)
        assert again.divergence == first.divergence
        assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == times
        other = with_tokenizer(
            write_checkpoint(tmp_path / "other", CONFIG, draw_tensors(CONFIG, 4, deviation=0.05))
        )
        with pytest.raises(ConversionError, match="is not empty"):
            to_int4(other, copy)
        next(copy.glob("*.safetensors")).unlink()
        with pytest.raises(CheckpointError, match="safetensors"):
            to_int4(whole.origin, copy)

    def test_a_full_disk_is_told_and_leaves_nothing_half_written(
        self, whole: Whole, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        with (
            largest_file(1 << 20),
            pytest.raises(ConversionError, match=r"00001-of-00003.*cannot be written.*Make room"),
        ):
            to_int4(whole.origin, copy)
        assert {path.name for path in copy.iterdir()} <= {conversion.MARKER, conversion.LOCK}
        to_int4(whole.origin, copy)
        assert contents(copy) == whole.files

    def test_progress_rises_to_the_bytes_of_the_original(
        self, origin: Path, tmp_path: Path
    ) -> None:
        seen: list[tuple[str, int, int]] = []
        to_int4(origin, tmp_path / "copy", lambda *event: seen.append(event))
        for reading in (True, False):
            events = [event for event in seen if event[0].startswith("Comparing") != reading]
            done = [done for _, done, _ in events]
            assert done == sorted(done)
            assert len(done) > 10
            assert {total for _, _, total in events} == {done[-1]}
        stored = load_file(origin / "model.safetensors")
        assert seen[0][2] == sum(tensor.nbytes for tensor in stored.values())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestRefusals:
    def test_a_folder_with_something_else_in_it(self, origin: Path, tmp_path: Path) -> None:
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / "thesis.txt").write_text("mine")
        with pytest.raises(ConversionError, match=r"copy: is not empty\. Name a new folder"):
            to_int4(origin, tmp_path / "copy")
        with pytest.raises(ConversionError, match="is not empty"):
            to_int4(origin, origin)
        assert load_model(origin)

    def test_part_of_a_copy_of_another_checkpoint(self, origin: Path, tmp_path: Path) -> None:
        def interrupt(activity: str, *_: int) -> None:
            if activity.startswith("Layer 2"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            to_int4(origin, tmp_path / "copy", interrupt)
        tensors = load_file(origin / "model.safetensors")
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, origin / "model.safetensors")
        with pytest.raises(ConversionError, match=r"another checkpoint.* Name another folder"):
            to_int4(origin, tmp_path / "copy")

    def test_a_folder_that_another_conversion_is_writing(
        self, origin: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        copy.mkdir()
        with (
            FileLock(copy / conversion.LOCK),
            pytest.raises(ConversionError, match="another conversion is writing there"),
        ):
            to_int4(origin, copy)

    def test_a_checkpoint_that_needs_none(self, origin: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"nothing to convert\. Say --experts int4"):
            convert(origin, tmp_path / "copy", lambda *_: None, int4=False, threads=1)
        with pytest.raises(CheckpointError, match="in groups already"):
            to_int4(to_int4(origin, tmp_path / "copy"), tmp_path / "again")

    def test_a_checkpoint_without_the_tokenizer_to_compare_with(
        self, origin: Path, tmp_path: Path
    ) -> None:
        """Before anything is written, not hours later."""
        (origin / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: is missing"):
            to_int4(origin, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_rows_that_are_no_groups(self, tmp_path: Path) -> None:
        config = CONFIG | {"moe_intermediate_size": 40}
        tensors = draw_tensors(config, 3, deviation=0.05)
        origin = with_tokenizer(write_checkpoint(tmp_path / "origin", config, tensors))
        with pytest.raises(CheckpointError, match="40 columns are not a multiple of 32"):
            to_int4(origin, tmp_path / "copy")

    @pytest.mark.parametrize("part", ["mins", "scales", "block_scales"])
    def test_a_copy_that_lost_a_part_is_not_loaded(
        self, part: str, origin: Path, tmp_path: Path
    ) -> None:
        copy = to_int4(origin, tmp_path / "copy")
        index = copy / "model.safetensors.index.json"
        described = json.loads(index.read_bytes())
        name = f"model.layers.0.mlp.experts.down_proj.{part}"
        shard = copy / described["weight_map"].pop(name)
        index.write_text(json.dumps(described))
        save_file({n: t for n, t in load_file(shard).items() if n != name}, shard)
        with pytest.raises(CheckpointError, match=r"down_proj.*Convert the checkpoint again"):
            load_model(copy)
