"""The whole model through its kernels: as transformers computes it, and exact where it must be.

Interpreted, and on a GPU where there is one. Models are as small as they come: what is interpreted
takes some milliseconds for each program.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import VOCAB_SIZE, write_tokenizer
from fp8_checkpoints import write_fp8
from interpreted import Caller, as_on
from kernel_tolerances import assert_agrees, assert_model_agrees
from oracle import Oracle
from packed_checkpoints import write_packed
from qcn_inference.checkpoint import load_model
from qcn_inference.config import KvCacheDtype
from qcn_inference.convert import convert
from qcn_kernels.paged_attention import E4M3_ROWS
from qcn_kernels.paged_attention.reference import rows_of, values_of
from random_checkpoints import (
    Config,
    draw_config,
    draw_qwen3_5,
    draw_tensors,
    random_checkpoint,
    write_checkpoint,
)
from torch import Tensor
from transformers.models.qwen3_next import modeling_qwen3_next
from whole_model import (
    answer_short_of_memory,
    branch,
    decode_where_a_capture_breaks,
    decode_without_graphs,
    follow_edits,
    formats_of,
    from_nothing,
    go_on_from_disk,
    launches_by_layer,
    read_and_step,
    read_and_step_offloaded,
    read_in_passes,
    resume,
    verify_in_turns,
)

PROMPT, DRAFTED, STEPS = 70, 3, 4  # a whole chunk of the delta rule, more than a page, and a bit
SMALL: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "hidden_size": 48,
    "vocab_size": 97,
    "max_position_embeddings": 1024,
}
EXPERTS: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 2}
WHOLE: dict[str, Any] = {  # blocks of 128 rows wherever rows are regrouped; columns need none
    "hidden_size": 160,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "partial_rotary_factor": 0.25,
    "attention_bias": True,
}
DENSE: dict[str, Any] = {  # and with few heads: each is a program
    **SMALL,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "mlp_only_layers": [0, 1],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.mark.parametrize(("seed", "dtype"), [(3, torch.float32), (7, torch.bfloat16)])
def test_logits_agree_with_transformers(
    call: Caller, seed: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Read, verified and decoded; in fp32 and with weights and products in bf16.

    All experts are chosen: no rounding of the router's logits can change which.
    """
    folder = random_checkpoint(tmp_path, seed, **SMALL, **EXPERTS)
    ids = torch.randint(0, 97, (PROMPT + STEPS,))
    want, _ = Oracle(folder).prefill(ids)
    read, stepped = call(
        read_and_step, folder=str(folder), ids=ids, prompt=PROMPT, drafted=DRAFTED, dtype=dtype
    )
    assert_model_agrees(read, want[: PROMPT + DRAFTED], dtype, hardware=call.hardware)
    assert_model_agrees(stepped, want[PROMPT:], dtype, hardware=call.hardware)


def test_with_keys_and_values_of_8_bits_logits_are_those_of_rounded_ones(
    call: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """transformers is made to round what it attends to, each key and value by its own scale."""
    folder = random_checkpoint(tmp_path, 3, **SMALL, **EXPERTS)
    ids = torch.randint(0, 97, (PROMPT + STEPS,))
    attend = modeling_qwen3_next.eager_attention_forward

    def rounded(module: Any, query: Tensor, *attended: Tensor, **named: Any) -> Any:
        key, value, *mask = attended
        near = [values_of(rows_of(x), x.shape[-1]) for x in (key, value)]
        return attend(module, query, *near, *mask, **named)

    monkeypatch.setattr(modeling_qwen3_next, "eager_attention_forward", rounded)
    want, _ = Oracle(folder).prefill(ids)
    read, stepped = call(
        read_and_step,
        folder=str(folder),
        ids=ids,
        prompt=PROMPT,
        drafted=DRAFTED,
        dtype=torch.float32,
        kept="fp8",
    )
    assert_model_agrees(read, want[: PROMPT + DRAFTED], E4M3_ROWS, hardware=call.hardware)
    assert_model_agrees(stepped, want[PROMPT:], E4M3_ROWS, hardware=call.hardware)


@pytest.mark.parametrize("shape", [{"hidden_size": 128, "moe_intermediate_size": 128}, WHOLE])
def test_fp8_agrees_with_transformers_on_the_dequantised_weights(
    call: Caller, shape: dict[str, Any], tmp_path: Path
) -> None:
    """What is FP8 stays so, and what it is multiplied by is quantised in prefill.

    Of the first shape heads are no whole blocks: beside the experts only what stands alone stays.
    """
    folder, want, ids = fp8_and_logits(tmp_path, shape)
    read, stepped = call(
        read_and_step, folder=str(folder), ids=ids, prompt=PROMPT, drafted=DRAFTED, dtype=None
    )
    fp8 = torch.float8_e4m3fn
    assert_model_agrees(read, want[: PROMPT + DRAFTED], fp8, hardware=call.hardware)
    assert_model_agrees(stepped, want[PROMPT:], fp8, hardware=call.hardware)


def test_fp8_agrees_closely_where_activations_are_not_quantised(
    call: Caller, tmp_path: Path
) -> None:
    """As on a chip without FP8 products: each row is multiplied by its own scale, as in fp32."""
    folder, want, ids = fp8_and_logits(tmp_path, WHOLE)
    arguments = {"ids": ids, "prompt": PROMPT, "drafted": DRAFTED, "dtype": torch.float32}
    read, stepped = call(partial(as_on, 80, read_and_step), folder=str(folder), **arguments)
    fp32 = torch.float32
    assert_model_agrees(read, want[: PROMPT + DRAFTED], fp32, hardware=call.hardware)
    assert_model_agrees(stepped, want[PROMPT:], fp32, hardware=call.hardware)


@pytest.mark.parametrize("drawn", [draw_config(7), draw_qwen3_5(7, dense=False)])
def test_of_an_fp8_checkpoint_only_what_is_stored_as_floats_is_not_fp8(
    call: Caller, drawn: Config, tmp_path: Path
) -> None:
    """Of the projections the rows of b and a, and of the router and the shared expert's gate."""
    config = drawn | SMALL | EXPERTS | WHOLE
    folder, _ = write_fp8(tmp_path, config, draw_tensors(config, 7, deviation=0.05))
    formats = call(formats_of, folder=str(folder), ids=torch.zeros(1))
    fp8, plain = torch.float8_e4m3fn, torch.float32
    assert formats["linear_attention in_proj"] == [(fp8, 1024), (plain, 4)]
    assert formats["full_attention in_proj"] == [(fp8, 768)]
    assert formats["mlp in_proj"] == [(fp8, 256), (plain, 3)]
    for name in ("linear_attention out_proj", "full_attention out_proj", "mlp shared_down"):
        assert formats[name] == [(fp8, 160)]


@pytest.mark.parametrize("fp8", [True, False])
def test_a_layer_takes_few_launches(call: Caller, fp8: bool, tmp_path: Path) -> None:
    """A launch takes as long as reading megabytes: in decode all that stands around a product is
    folded into it, and a prefill, which splits its products by format, launches no more than this.
    """
    config = draw_config(7) | SMALL | EXPERTS | WHOLE
    tensors = draw_tensors(config, 7, deviation=0.05)
    folder = write_fp8(tmp_path, config, tensors)[0] if fp8 else tmp_path
    if not fp8:
        write_checkpoint(folder, config, tensors)
    launches = call(launches_by_layer, folder=str(folder), ids=torch.randint(0, 97, (5,)))
    mixture = ["_linear_step", "_route", "_gate_up_step", "_down_step"]
    attention = ["_rms_norm_rotary", "_append", "_attend", "_combine", "_linear_step"]
    assert launches["GatedDeltaNet decode"] == ["_linear_step", "_step", "_linear_step", *mixture]
    assert launches["GatedAttention decode"] == ["_linear_step", *attention, *mixture]
    assert len(launches["GatedDeltaNet prefill"]) == (20 if fp8 else 18)
    assert len(launches["GatedAttention prefill"]) == (20 if fp8 else 17)


def fp8_and_logits(folder: Path, shape: dict[str, Any]) -> tuple[Path, Tensor, Tensor]:
    """Write an FP8 checkpoint; return transformers' logits of some ids by what it stands for."""
    config = draw_config(7) | SMALL | EXPERTS | shape
    written, plain = write_fp8(folder / "fp8", config, draw_tensors(config, 7, deviation=0.05))
    ids = torch.randint(0, 97, (PROMPT + STEPS,))
    want, _ = Oracle(write_checkpoint(folder / "plain", config, plain)).prefill(ids)
    return written, want, ids


@pytest.mark.parametrize("seed", [7, 8])
def test_4_bit_experts_agree_with_transformers_on_the_dequantised_weights(
    call: Caller, seed: int, tmp_path: Path
) -> None:
    """Codes as GPTQ publishes them, dequantised in the kernels; products are fp32 here."""
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64, "attention_bias": False}
    config = draw_config(seed) | SMALL | EXPERTS | sizes
    origin, folder = tmp_path / "gptq", tmp_path / "copy"
    plain = write_packed(origin, config, draw_tensors(config, seed, deviation=0.05), "gptq")
    convert(origin, folder, lambda *_: None, int4=False, threads=1)
    ids = torch.randint(0, 97, (PROMPT + STEPS,))
    want, _ = Oracle(write_checkpoint(tmp_path / "plain", config, plain)).prefill(ids)
    arguments = {"ids": ids, "prompt": PROMPT, "drafted": DRAFTED, "dtype": torch.float32}
    read, stepped = call(read_and_step, folder=str(folder), **arguments)
    fp32 = torch.float32
    assert_model_agrees(read, want[: PROMPT + DRAFTED], fp32, hardware=call.hardware)
    assert_model_agrees(stepped, want[PROMPT:], fp32, hardware=call.hardware)


def test_4_bit_experts_in_host_memory_give_the_same_bits(call: Caller, tmp_path: Path) -> None:
    """As those in FP8: two layers' worth of slots for three layers."""
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64, "attention_bias": False}
    config = draw_config(7) | SMALL | sizes | {"num_experts": 4, "num_experts_per_tok": 2}
    write_packed(tmp_path / "awq", config, draw_tensors(config, 7, deviation=0.05), "awq")
    convert(tmp_path / "awq", tmp_path / "copy", lambda *_: None, int4=False, threads=1)
    read, stepped, read_there, stepped_there = call(
        read_and_step_offloaded,
        folder=str(tmp_path / "copy"),
        ids=torch.randint(0, 97, (22,)),
        prompt=20,
        slots=8,
        missing_on_cpu=False,
    )
    assert torch.equal(read_there, read)
    assert torch.equal(stepped_there, stepped)


@pytest.mark.parametrize("missing_on_cpu", [False, True])
def test_fp8_experts_in_host_memory_give_the_same_bits(
    call: Caller, tmp_path: Path, missing_on_cpu: bool
) -> None:
    """What is decoded agrees where the CPU takes part; drafts are verified then as a prefill.

    Two layers' worth of slots for three layers: experts come and go.
    """
    shape = {"hidden_size": 128, "moe_intermediate_size": 128}
    few = {"num_experts": 4, "num_experts_per_tok": 2}
    config = draw_config(7) | SMALL | shape | few
    folder, _ = write_fp8(tmp_path, config, draw_tensors(config, 7, deviation=0.05))
    read, stepped, read_there, stepped_there = call(
        read_and_step_offloaded,
        folder=str(folder),
        ids=torch.randint(0, 97, (22,)),
        prompt=20,
        slots=8,
        missing_on_cpu=missing_on_cpu,
    )
    assert torch.equal(read_there, read)
    if missing_on_cpu:
        got, want = stepped_there[2:], stepped[2:].double()
        assert_agrees("offloaded_step", got, want, hardware=call.hardware)
    else:
        assert torch.equal(stepped_there, stepped)


@pytest.mark.parametrize(("stored", "keys"), [("fp32", "auto"), ("fp32", "fp8"), ("fp8", "auto")])
def test_a_pass_over_several_blocks_is_a_pass_for_each_bit_for_bit(
    call: Caller, stored: str, keys: KvCacheDtype, tmp_path: Path
) -> None:
    """Three files of one text, read at once or one by one: the same logits, states and pages."""
    if stored == "fp8":
        config = draw_config(5) | SMALL | EXPERTS | WHOLE
        folder, _ = write_fp8(tmp_path, config, draw_tensors(config, 5, deviation=0.05))
    else:
        folder = random_checkpoint(tmp_path, 5, **DENSE)
    arguments = {"folder": str(folder), "ids": torch.randint(0, 97, (130,)), "cuts": (30, 110, 130)}
    arguments["keys"] = keys
    logits, kept = call(read_in_passes, **arguments, together=False)
    logits_together, kept_together = call(read_in_passes, **arguments, together=True)
    assert torch.equal(logits, logits_together)
    assert kept.keys() == kept_together.keys()
    for name, part in kept.items():
        assert torch.equal(part, kept_together[name]), name


@pytest.mark.parametrize("keys", ["auto", "fp8"])
@pytest.mark.parametrize("resident", [True, False])
def test_what_is_resumed_is_what_is_read_from_nothing(
    call: Caller, resident: bool, keys: KvCacheDtype, tmp_path: Path
) -> None:
    """From parts that are still on the device, and from the host's copies of them."""
    folder = random_checkpoint(tmp_path, 5, **DENSE)
    arguments = {
        "folder": str(folder),
        "ids": torch.randint(0, 97, (70,)),
        "cuts": (20, 70),
        "behind": (5, 6, 7),
        "keys": keys,
    }
    want = call(from_nothing, **arguments)
    assert torch.equal(call(resume, **arguments, resident=resident), want)


def test_branches_that_are_decoded_in_turns_do_not_see_each_other(
    call: Caller, tmp_path: Path
) -> None:
    """One seat for both: each is given its state back when the other sits down."""
    folder = random_checkpoint(tmp_path, 6, **DENSE)
    one, other, alone = call(branch, folder=str(folder), ids=torch.randint(0, 97, (20,)))
    assert torch.equal(one, alone)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drafts_that_are_verified_in_turns_are_what_steps_are(
    call: Caller, dtype: torch.dtype, tmp_path: Path
) -> None:
    """One seat for both branches: what a draft would do is kept aside while the other has it."""
    folder = random_checkpoint(tmp_path, 6, **DENSE)
    ids = torch.randint(0, 97, (20,))
    got, want = call(verify_in_turns, folder=str(folder), ids=ids, dtype=dtype)
    assert_model_agrees(got, want, dtype, hardware=call.hardware)


@pytest.mark.parametrize("memory_lacks", [False, True])
def test_where_no_graph_can_be_captured_steps_are_launched_one_by_one(
    call: Caller, memory_lacks: bool, tmp_path: Path
) -> None:
    """Where memory lacks, the next sequence's may be captured: there may be some by then."""
    folder = random_checkpoint(tmp_path, 6, **DENSE)
    ids = torch.randint(0, 97, (7,))
    logits, uses_graphs = call(
        decode_without_graphs, folder=str(folder), ids=ids, memory_lacks=memory_lacks
    )
    assert uses_graphs is memory_lacks
    model = load_model(folder)
    want = model.prefill(ids, model.new_state(), all_logits=True)[4:]
    assert_model_agrees(logits, want, torch.float32, hardware=call.hardware)


@pytest.mark.parametrize("memory_lacks", [False, True])
def test_behind_a_capture_that_breaks_decoding_goes_on_and_memory_is_given_back(
    call: Caller, memory_lacks: bool, tmp_path: Path
) -> None:
    """torch's allocator took the capture for under way, and failed where memory was asked back."""
    folder = random_checkpoint(tmp_path, 6, **DENSE)
    ids = torch.randint(0, 97, (7,))
    logits, uses_graphs = call(
        decode_where_a_capture_breaks, folder=str(folder), ids=ids, memory_lacks=memory_lacks
    )
    assert uses_graphs is memory_lacks
    model = load_model(folder)
    want = model.prefill(ids, model.new_state(), all_logits=True)[4:]
    assert_model_agrees(logits, want, torch.float32, hardware=call.hardware)


@pytest.mark.parametrize("layer", [0, 5])
def test_a_step_that_lacks_memory_is_taken_again_and_the_answer_is_the_same(
    call: Caller, layer: int, tmp_path: Path
) -> None:
    """Between two layers, when half of the state has the token; all pages are free afterwards."""
    write_tokenizer(tmp_path)
    folder = random_checkpoint(tmp_path, 8, **DENSE | {"vocab_size": VOCAB_SIZE})
    # Not drawn: behind one prompt in fifty the text ends before both layers are met.
    ids = torch.arange(20, 40)
    arguments = {"folder": str(folder), "ids": ids, "layer": layer}
    got, want, given_back = call(answer_short_of_memory, **arguments)
    # What was decoded is read anew, which on hardware rounds otherwise: a draw near a border of two
    # tokens falls to the other.
    assert call.hardware or got == want
    assert given_back == ["resident", "graphs"]


def test_completions_behind_edits_are_those_of_a_fresh_engine_bit_for_bit(
    call: Caller, tmp_path: Path
) -> None:
    """The context cache on the device: an edit reads what is behind it, going back nothing."""
    write_tokenizer(tmp_path)
    folder = random_checkpoint(tmp_path, 8, **DENSE | {"vocab_size": VOCAB_SIZE})
    got, want, known = call(follow_edits, folder=str(folder), ids=torch.zeros(1))
    assert torch.equal(got, want)
    assert known == [0, 31, 52]


def test_what_was_read_comes_back_from_disk_bit_for_bit(call: Caller, tmp_path: Path) -> None:
    """From the device by the host's memory into files, and back: pages and checkpoints.

    An engine copies an empty state to the host when it starts, whose shapes the files have.
    """
    write_tokenizer(tmp_path)
    folder = random_checkpoint(tmp_path, 8, **DENSE | {"vocab_size": VOCAB_SIZE})
    arguments = {"folder": str(folder), "contexts": str(tmp_path / "contexts")}
    got, want, kept, back = call(go_on_from_disk, **arguments, ids=torch.zeros(1))
    assert torch.equal(got, want)
    assert len(kept) == 8  # of a layer of each kind, for either file
    assert kept.keys() == back.keys()
    for name, part in kept.items():
        assert torch.equal(part, back[name]), name
