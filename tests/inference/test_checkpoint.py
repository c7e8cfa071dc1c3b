"""A checkpoint that is not as it should be: the error names the file, the fault and the remedy."""

import contextlib
import json
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.checkpoint import load_model
from qcn_inference.config import load_config
from qcn_inference.errors import CheckpointError
from random_checkpoints import (
    Config,
    draw_config,
    draw_qwen3_5,
    draw_tensors,
    pack_experts,
    random_checkpoint,
    wrap,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file
from sampling import examples
from torch import Tensor

CONFIG: Config = draw_config(11) | {"num_hidden_layers": 2, "mlp_only_layers": []}
CONFIG["layer_types"] = ["linear_attention", "full_attention"]
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return draw_tensors(CONFIG, 11, deviation=0.05)


def refused(folder: Path, file: str, problem: str) -> None:
    """Loading `folder` fails with an error about `file` that says `problem` and what to do."""
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    error = caught.value
    assert error.path == folder / file
    assert re.search(problem, error.problem), error.problem
    text = str(error)
    assert str(error.path) in text
    assert text.endswith(f"{error.remedy}.")
    assert "\n" not in text


class TestFolder:
    def test_that_is_missing(self, tmp_path: Path) -> None:
        refused(tmp_path / "nowhere", "", "no such folder")

    def test_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / MODEL).touch()
        refused(tmp_path / MODEL, "", "is no folder; expected a checkpoint")

    @pytest.mark.parametrize("named", [".", "model-Q4_K_M.gguf"])
    def test_that_is_or_holds_a_gguf(self, named: str, tmp_path: Path) -> None:
        gguf = tmp_path / "model-Q4_K_M.gguf"
        gguf.touch()
        with pytest.raises(CheckpointError, match=rf"qcn models convert {re.escape(str(gguf))} "):
            load_model(tmp_path / named)

    @pytest.mark.parametrize("file", ["config.json", MODEL])
    def test_with_a_file_that_may_not_be_read(
        self,
        file: str,
        tensors: dict[str, Tensor],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = write_checkpoint(tmp_path, CONFIG, tensors)
        opened = Path.open

        def refuse(path: Path, *arguments: Any, **named: Any) -> Any:
            if path == folder / file:  # the tests may run as root, whom no mode keeps out
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *arguments, **named)

        monkeypatch.setattr(Path, "open", refuse)  # Path.read_text opens with it, too
        refused(folder, file, r"cannot be read \(Permission denied\)")

    def test_without_config(self, tmp_path: Path) -> None:
        refused(tmp_path, "config.json", "no such file")

    def test_without_weights(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        refused(tmp_path, MODEL, "no such file")

    def test_with_pickled_weights_alone_does_not_open_them(self, tmp_path: Path) -> None:
        marker = tmp_path / "the pickle was run"

        class Trap:
            def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
                return Path.touch, (marker,)

        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
        refused(tmp_path, "pytorch_model.bin", "runs code")
        assert not marker.exists()

    def test_with_a_pickle_called_safetensors(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        torch.save({"x": torch.zeros(2)}, tmp_path / MODEL)
        refused(tmp_path, MODEL, "no whole safetensors file")


class TestConfig:
    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1}x', "[" * 100_000])
    def test_that_is_no_json_object(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(text)
        refused(tmp_path, "config.json", "JSON")

    def test_that_is_no_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
        refused(tmp_path, "config.json", "JSON")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("model_type", "llama"),
            ("model_type", "qwen3_vl_text"),
            ("model_type", ["qwen3_5"]),
            ("model_type", None),
            ("attn_output_gate", False),
            ("output_gate_type", "sigmoid"),
            ("text_config", "elsewhere"),
            ("hidden_act", "gelu"),
            ("use_sliding_window", True),
            ("hidden_size", None),
            ("hidden_size", "64"),
            ("hidden_size", 0),
            ("hidden_size", 10**400),
            ("num_hidden_layers", 10**9),
            ("rope_theta", float("inf")),
            ("rms_norm_eps", float("nan")),
            ("vocab_size", True),
            ("num_hidden_layers", -1),
            ("rms_norm_eps", 0),
            ("tie_word_embeddings", "yes"),
            ("num_key_value_heads", 7),
            ("linear_num_key_heads", 5),
            ("num_experts_per_tok", 1000),
            ("layer_types", ["linear_attention"]),
            ("layer_types", ["linear_attention", "sliding_attention"]),
            ("layer_types", [["linear_attention"], "full_attention"]),
            ("mlp_only_layers", ["1"]),
            ("partial_rotary_factor", 1.5),
            ("eos_token_id", "end"),
            ("rope_parameters", 3),
        ],
    )
    def test_with_a_value_it_cannot_have(self, key: str, value: object, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {key: value}))
        refused(tmp_path, "config.json", f'"{key}" is .*; expected')

    @pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
    def test_with_a_scaled_rotary_embedding(self, spelling: str, tmp_path: Path) -> None:
        rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {spelling: rope}))
        refused(tmp_path, "config.json", "yarn")

    def test_with_a_scaling_in_the_old_spelling_beside_the_new_one(self, tmp_path: Path) -> None:
        """Model cards say to add one to the file, whichever spelling that has."""
        rope = {"rope_type": "default", "rope_theta": 1e4}
        scaled = {"rope_parameters": rope, "rope_scaling": {"type": "yarn", "factor": 4.0}}
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | scaled))
        refused(tmp_path, "config.json", "yarn")

    @pytest.mark.parametrize(
        "quantisation",
        [
            {"quant_method": "gptq", "bits": 4},
            {"quant_method": "fp8"},
            {"quant_method": "fp8", "weight_block_size": [128]},
            {"quant_method": "fp8", "weight_block_size": [128, 0]},
        ],
    )
    def test_with_another_quantisation(self, quantisation: Config, tmp_path: Path) -> None:
        changed = CONFIG | {"quantization_config": quantisation}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        refused(tmp_path, "config.json", "quant_method|weight_block_size")

    def test_both_spellings_are_the_same_config(self, tmp_path: Path) -> None:
        old = {key: value for key, value in CONFIG.items() if key != "layer_types"}
        old |= {"full_attention_interval": 2, "rope_theta": 5e6, "partial_rotary_factor": 0.5}
        new = CONFIG | {"layer_types": ["linear_attention", "full_attention"]}
        del new["rope_theta"], new["partial_rotary_factor"]
        new["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 5e6,
            "partial_rotary_factor": 0.5,
        }
        parsed = []
        for name, config in (("old", old | {"head_dim": 32}), ("new", new | {"head_dim": 32})):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(json.dumps(config))
            parsed.append(load_config(tmp_path / name))
        assert parsed[0] == parsed[1]
        assert (parsed[0].rotary_dim, parsed[0].rope_theta) == (16, 5e6)

    @pytest.mark.parametrize("dense", [True, False])
    def test_a_wrapped_text_model_is_the_same_config(self, dense: bool, tmp_path: Path) -> None:
        """What concerns both parts, such as the format of the weights, may stand outside."""
        text = draw_qwen3_5(3, dense=dense)
        fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        wrapped, _ = wrap(text, {})
        parsed = []
        for name, config in (("alone", text), ("wrapped", wrapped)):
            (tmp_path / name).mkdir()
            written = json.dumps(config | {"quantization_config": fp8})
            (tmp_path / name / "config.json").write_text(written)
            parsed.append(load_config(tmp_path / name))
        assert parsed[0] == parsed[1]
        assert parsed[0].fp8_block == (128, 128)
        assert parsed[0].norm_topk_prob
        assert len(parsed[0].dense_layers) == (text["num_hidden_layers"] if dense else 0)

    def test_generation_config_adds_end_of_sequence_ids(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"eos_token_id": 3}))
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 3]}')
        assert load_config(tmp_path).eos_token_ids == (3, 5)

    def test_generation_config_may_name_the_order_of_fill_in_the_middle(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        assert load_config(tmp_path).fim_order == "prefix_first"
        (tmp_path / "generation_config.json").write_text('{"fim_order": "suffix_first"}')
        assert load_config(tmp_path).fim_order == "suffix_first"
        (tmp_path / "generation_config.json").write_text('{"fim_order": "middle_first"}')
        with pytest.raises(CheckpointError, match=r'generation_config.*"fim_order" is "middle_fi'):
            load_config(tmp_path)


class TestTensors:
    def test_missing(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        name = "model.layers.1.mlp.experts.0.up_proj.weight"
        kept = {key: value for key, value in tensors.items() if key != name}
        refused(write_checkpoint(tmp_path, CONFIG, kept), "", re.escape(name))

    def test_for_far_fewer_experts_than_config_says(
        self, tensors: dict[str, Tensor], tmp_path: Path
    ) -> None:
        """No memory is taken for them first."""
        folder = write_checkpoint(tmp_path, CONFIG | {"num_experts": 10**9}, tensors)
        refused(folder, "", rf"experts\.{CONFIG['num_experts']}\.")

    def test_of_the_wrong_shape(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        name = "model.layers.0.linear_attn.in_proj_ba.weight"
        changed = tensors | {name: tensors[name].T.contiguous()}
        refused(write_checkpoint(tmp_path, CONFIG, changed), MODEL, f"{name} has the shape")

    def test_packed_the_other_way_round(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        packed = pack_experts(CONFIG, tensors)
        name = "model.layers.0.mlp.experts.gate_up_proj"
        packed[name] = packed[name].mT.contiguous()
        refused(write_checkpoint(tmp_path, CONFIG, packed), MODEL, f"{name} has the shape")

    def test_of_integers(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        name = "model.norm.weight"
        changed = tensors | {name: tensors[name].to(torch.int8)}
        refused(write_checkpoint(tmp_path, CONFIG, changed), MODEL, f"{name} is stored as I8")

    def test_fp8_without_scale(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        name = "model.layers.1.self_attn.k_proj.weight"
        changed = tensors | {name: tensors[name].to(torch.float8_e4m3fn)}
        refused(write_checkpoint(tmp_path, CONFIG, changed), MODEL, f"{name} is stored as F8_E4M3")

    def test_fp8_without_a_block_size(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        name = "model.layers.1.self_attn.k_proj.weight"
        changed = tensors | {
            name: tensors[name].to(torch.float8_e4m3fn),
            f"{name}_scale_inv": torch.ones(1, 1),
        }
        refused(write_checkpoint(tmp_path, CONFIG, changed), MODEL, "weight_block_size None")

    def test_a_scale_without_fp8(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        name = "model.layers.1.self_attn.k_proj.weight"
        quantisation = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        changed = tensors | {f"{name}_scale_inv": torch.ones(1, 1)}
        folder = write_checkpoint(tmp_path, CONFIG | {"quantization_config": quantisation}, changed)
        refused(folder, MODEL, f"{name} is stored as F32")

    def test_that_nothing_uses(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        extra = tensors | {"model.layers.7.input_layernorm.weight": torch.ones(4)}
        refused(write_checkpoint(tmp_path, CONFIG, extra), MODEL, r"model\.layers\.7")

    def test_a_superfluous_head_and_mtp_are_ignored(
        self, tensors: dict[str, Tensor], tmp_path: Path
    ) -> None:
        extra = tensors | {
            "lm_head.weight": torch.full((2, 2), torch.nan),
            "mtp.layers.0.mlp.gate.weight": torch.full((2, 2), torch.nan),
        }
        tied = CONFIG | {"tie_word_embeddings": True}
        model = load_model(write_checkpoint(tmp_path, tied, extra))
        assert model.decode(1, model.new_state()).isfinite().all()


class TestFiles:
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
    def test_cut_short(self, share: float, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, CONFIG, tensors)
        contents = (folder / MODEL).read_bytes()
        (folder / MODEL).write_bytes(contents[: int(share * len(contents))])
        refused(folder, MODEL, "no whole safetensors file")

    def test_followed_by_something(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, CONFIG, tensors)
        with (folder / MODEL).open("ab") as file:
            file.write(b"more")
        refused(folder, MODEL, "no whole safetensors file")

    @pytest.mark.parametrize(
        "spoil",
        [
            pytest.param(lambda first, second: second.update(first), id="overlapping"),
            pytest.param(lambda first, _: first["data_offsets"].reverse(), id="backwards"),
            pytest.param(
                lambda first, _: first["data_offsets"].__setitem__(1, 1 << 60), id="beyond"
            ),
            pytest.param(lambda first, _: first["data_offsets"].__setitem__(0, -4), id="negative"),
            pytest.param(lambda first, _: first["shape"].append(3), id="shape and bytes disagree"),
            pytest.param(lambda first, _: first.update(dtype="F3"), id="no dtype"),
            pytest.param(lambda first, _: first.clear(), id="no entry"),
        ],
    )
    def test_with_a_false_header(
        self,
        spoil: Callable[[dict[str, Any], dict[str, Any]], object],
        tensors: dict[str, Tensor],
        tmp_path: Path,
    ) -> None:
        folder = write_checkpoint(tmp_path, CONFIG, tensors)
        contents = (folder / MODEL).read_bytes()
        size = int.from_bytes(contents[:8], "little")
        header = json.loads(contents[8 : 8 + size])
        first, second, *_ = (value for key, value in header.items() if key != "__metadata__")
        spoil(first, second)
        text = json.dumps(header).encode()
        (folder / MODEL).write_bytes(struct.pack("<Q", len(text)) + text + contents[8 + size :])
        refused(folder, MODEL, "no whole safetensors file")

    @pytest.mark.long
    @examples(sample=40, full=400)
    @given(data=st.data())
    def test_altered_headers_never_crash(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Any few bytes of the header changed: a model or a CheckpointError, nothing else."""
        folder = random_checkpoint(tmp_path_factory.mktemp("altered"), 6)
        contents = bytearray((folder / MODEL).read_bytes())
        end = 8 + int.from_bytes(contents[:8], "little")
        places = st.tuples(st.integers(0, end - 1), st.integers(0, 255))
        for place, byte in data.draw(st.lists(places, min_size=1, max_size=4)):
            contents[place] = byte
        (folder / MODEL).write_bytes(contents)
        with contextlib.suppress(CheckpointError):
            load_model(folder)


class TestShards:
    @pytest.fixture
    def folder(self, tensors: dict[str, Tensor], tmp_path: Path) -> Path:
        return write_checkpoint(tmp_path, CONFIG, tensors, shards=3)

    def test_one_missing(self, folder: Path) -> None:
        (folder / "model-00002-of-00003.safetensors").unlink()
        refused(folder, "model-00002-of-00003.safetensors", "no such file.* 1 of them missing")

    def test_one_cut_short(self, folder: Path) -> None:
        shard = folder / "model-00003-of-00003.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1])
        refused(folder, shard.name, "no whole safetensors file")

    def test_one_that_lacks_a_tensor(self, folder: Path) -> None:
        shard = folder / "model-00001-of-00003.safetensors"
        kept = load_file(shard)
        name, _ = kept.popitem()
        save_file(kept, shard)
        refused(folder, shard.name, f"lacks the tensor {re.escape(name)}")

    def test_a_tensor_stored_twice(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        shard = folder / "model-00003-of-00003.safetensors"
        extra = load_file(folder / "model-00001-of-00003.safetensors").popitem()
        save_file(load_file(shard) | dict([extra]), shard)
        refused(folder, shard.name, f"{re.escape(extra[0])}, which .* too")

    @pytest.mark.parametrize(
        "text", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": ["a"]}']
    )
    def test_an_index_that_is_none(self, text: str, folder: Path) -> None:
        (folder / INDEX).write_text(text)
        refused(folder, INDEX, "weight_map|no tensors")

    @pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "x.bin", "a/b", ".."])
    def test_an_index_that_points_elsewhere(self, name: str, folder: Path) -> None:
        (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
        refused(folder, INDEX, "names the file")


class TestLoading:
    def test_progress_rises_to_the_bytes_of_the_weights(
        self, tensors: dict[str, Tensor], tmp_path: Path
    ) -> None:
        ignored = {"mtp.fc.weight": torch.zeros(500, 500)}
        folder = write_checkpoint(tmp_path, CONFIG, tensors | ignored, shards=2)
        seen: list[tuple[int, int]] = []
        load_model(folder, progress=lambda done, total: seen.append((done, total)))
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert {total for _, total in seen} == {size}
        done = [done for done, _ in seen]
        assert done == sorted(done)
        assert len(done) > len(tensors) // 2
        assert done[-1] == size

    def test_the_fingerprint_tells_models_and_precisions_apart(
        self, tensors: dict[str, Tensor], tmp_path: Path
    ) -> None:
        folder = write_checkpoint(tmp_path / "a", CONFIG, tensors)
        same = write_checkpoint(tmp_path / "b", CONFIG, tensors)
        name = "model.layers.0.linear_attn.A_log"
        weights = write_checkpoint(tmp_path / "c", CONFIG, tensors | {name: tensors[name] + 1e-3})
        config = write_checkpoint(tmp_path / "d", CONFIG | {"rope_theta": 12345.0}, tensors)
        prints = [load_model(path).fingerprint for path in (folder, weights, config)]
        prints.append(load_model(folder, dtype=torch.bfloat16).fingerprint)
        assert len(set(prints)) == 4
        assert load_model(same).fingerprint == prints[0]

    @pytest.mark.parametrize(
        ("stored", "used"),
        [
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.bfloat16),
            (torch.float16, torch.bfloat16),
        ],
    )
    def test_keys_and_values_are_kept_in_the_precision_of_the_weights(
        self, stored: torch.dtype, used: torch.dtype, tensors: dict[str, Tensor], tmp_path: Path
    ) -> None:
        halves = {name: tensor.to(stored) for name, tensor in tensors.items()}
        model = load_model(write_checkpoint(tmp_path, CONFIG, halves))
        state = model.new_state()
        recurrent = state.nbytes
        model.decode(1, state)
        per_token = 2 * CONFIG["num_key_value_heads"] * CONFIG["head_dim"] * used.itemsize
        assert (state.nbytes - recurrent) % per_token == 0
        assert model.decode(1, state).dtype == torch.float32
