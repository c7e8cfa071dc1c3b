"""GPTQ and AWQ: codes are kept bit for bit, and the model is that of the dequantised weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle
from packed_checkpoints import Method, draw_layer, packed, quantisation_config, write_packed
from qcn_inference.checkpoint import load_model
from qcn_inference.convert import convert
from qcn_inference.errors import CheckpointError
from qcn_inference.formats.packed_source import Layout
from random_checkpoints import Config, draw_config, draw_tensors, write_checkpoint
from sampling import examples
from torch import Tensor

METHODS: tuple[Method, ...] = ("gptq", "gptq_v2", "awq")
CONFIG: Config = draw_config(3) | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "mlp_only_layers": [],
    "vocab_size": 97,
}


NAME = "model.layers.1.mlp.experts.2.down_proj"
WORDS = torch.ones(3, 5, dtype=torch.int32)


def layout(method: Method) -> Layout:
    return Layout.read(Path("config.json"), quantisation_config(method))


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@examples(sample=10, full=200)
@given(outputs=st.integers(1, 3), groups=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_repacked_codes_stand_for_the_same_numbers_bit_for_bit(
    method: Method, outputs: int, groups: int, seed: int
) -> None:
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if seed % 2 else torch.float16
    layer = draw_layer(torch.randn(8 * outputs, 32 * groups), dtype=dtype)
    got = layout(method).matrix(packed(layer, method))
    assert got.bits == 4
    assert torch.equal(got.dequantised()[0], layer.weights())


def test_inputs_out_of_order_are_dequantised_and_not_repacked() -> None:
    layer = draw_layer(torch.randn(16, 128), reordered=True, dtype=torch.float16)
    parts = packed(layer, "gptq")
    assert torch.equal(layout("gptq").floats(parts), layer.weights())
    with pytest.raises(ValueError, match="desc_act"):
        layout("gptq").matrix(parts)


def write(
    folder: Path, method: Method, spoil: Callable[[dict[str, Tensor]], object] = len
) -> dict[str, Tensor]:
    return write_packed(folder, CONFIG, draw_tensors(CONFIG, 3, deviation=0.05), method, spoil)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_agrees_with_transformers_on_the_dequantised_weights(
    method: Method, tmp_path: Path
) -> None:
    after = write(tmp_path / "origin", method)
    convert(tmp_path / "origin", tmp_path / "copy", lambda *_: None, int4=False, threads=1)
    ids = torch.arange(60)
    want, _ = Oracle(write_checkpoint(tmp_path / "plain", CONFIG, after)).prefill(ids)
    model = load_model(tmp_path / "copy", dtype=torch.float32)
    got = model.prefill(ids, model.new_state(), all_logits=True)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{"bits": 8}, {"quant_method": "awq", "version": "gemv"}, {"bits": None}],
)
def test_another_layout_is_refused(changes: Config, tmp_path: Path) -> None:
    given = quantisation_config("gptq") | changes
    write_checkpoint(tmp_path, CONFIG | {"quantization_config": given}, {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"config\.json: .* bits.* Use a checkpoint"):
        convert(tmp_path, tmp_path / "copy", lambda *_: None, int4=False, threads=1)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda stored: stored.pop(f"{NAME}.qzeros"), id="missing"),
        pytest.param(lambda stored: stored.update({f"{NAME}.qzeros": WORDS}), id="zeros"),
        pytest.param(lambda stored: stored.update({f"{NAME}.scales": WORDS.half()}), id="scales"),
        pytest.param(lambda stored: stored.update({f"{NAME}.scales": WORDS}), id="of integers"),
        pytest.param(lambda stored: stored.update({f"{NAME}.qweight": WORDS}), id="codes"),
    ],
)
def test_parts_that_do_not_fit_are_told(
    spoil: Callable[[dict[str, Tensor]], object], tmp_path: Path
) -> None:
    write(tmp_path / "origin", "gptq", spoil)
    with pytest.raises(CheckpointError, match=r"experts\.2 cannot be repacked .* Use a checkpoint"):
        convert(tmp_path / "origin", tmp_path / "copy", lambda *_: None, int4=False, threads=1)
    assert not (tmp_path / "copy" / "config.json").exists()


def test_a_folder_is_not_served_but_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, "awq")
    with pytest.raises(CheckpointError, match=r'"quant_method" is "awq".* Run `qcn models convert'):
        load_model(tmp_path)
