"""Our logits are those of transformers' models of each family, on random checkpoints in fp32.

Tolerances: weight deviations up to 0.05 within 1e-4. Larger deviations amplify rounding, so there
the measure is transformers itself: four times the difference between its chunked and its stepwise
run.

Excuses: where two experts or two tokens are nearly tied, rounding decides, and both answers are
right. A position may differ only at a near-tie of its logits (argmax), or at or behind a near-tie
of the router, whose other choice lives on in the state. No more than 2 % of the positions may need
it.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from oracle import Oracle
from qcn_inference.checkpoint import load_model
from random_checkpoints import (
    Config,
    draw_config,
    draw_qwen3_5,
    draw_tensors,
    pack_experts,
    random_checkpoint,
    wrap,
)
from random_checkpoints import write_checkpoint as write
from sampling import count
from torch import Tensor

DEVIATIONS = (0.02, 0.05, 0.3, 0.03, 0.6, 0.05, 0.15, 0.04)
PROMPT, STEPS = 70, 200
ROUTER_TIE = 1e-4  # difference of two router logits
LOGIT_TIE = 1e-3
EXCUSED_SHARE = 0.02


@dataclass
class Run:
    """What transformers and we make of one checkpoint and one text."""

    chunked: Tensor  # logits [T, V]: theirs, the whole text at once
    stepwise: Tensor  # [STEPS, V]: theirs, token by token behind the prompt
    our_chunked: Tensor
    our_stepwise: Tensor
    tied: Tensor  # [T] bool: a router near-tie at or before the token

    @property
    def tolerance(self) -> float:
        own = (self.chunked[PROMPT - 1 :] - self.stepwise).abs().amax()
        return max(1e-4, 4 * float(own))


def run(folder: Path, seed: int) -> Run:
    """Let transformers choose 200 tokens; force the same text on ourselves in both ways."""
    oracle, ours = Oracle(folder), load_model(folder)
    prompt = torch.randint(
        0, ours.config.vocab_size, (PROMPT,), generator=torch.Generator().manual_seed(seed)
    )
    ids, stepwise = oracle.greedy(prompt, STEPS)
    text = ids[:-1]
    chunked, margins = oracle.prefill(text)
    state = ours.new_state()
    our_stepwise = [ours.prefill(prompt, state)[0]]
    our_stepwise += [ours.decode(token, state) for token in text[PROMPT:].tolist()]
    return Run(
        chunked=chunked,
        stepwise=stepwise,
        our_chunked=ours.prefill(text, ours.new_state(), all_logits=True),
        our_stepwise=torch.stack(our_stepwise),
        tied=(margins < ROUTER_TIE).cummax(0).values,
    )


def draw(family: str, seed: int) -> Config:
    if family == "qwen3_next":
        return draw_config(seed)
    return draw_qwen3_5(seed, dense=family == "qwen3_5")


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "seed"),
    [
        *(("qwen3_next", seed) for seed in range(count(sample=4, full=24))),
        *(("qwen3_5", seed) for seed in range(count(sample=2, full=10))),
        *(("qwen3_5_moe", seed) for seed in range(count(sample=2, full=10))),
    ],
)
def test_logits_and_greedy_tokens_agree(family: str, seed: int, tmp_path: Path) -> None:
    deviation, config = DEVIATIONS[seed % len(DEVIATIONS)], draw(family, seed)
    result = run(write(tmp_path, config, draw_tensors(config, seed, deviation=deviation)), seed)
    tolerance = 1e-4 if deviation <= 0.05 else result.tolerance

    excused = 0
    for theirs, mine, tied in (
        (result.chunked, result.our_chunked, result.tied),
        (result.stepwise, result.our_stepwise, result.tied[PROMPT - 1 :]),
    ):
        apart = (theirs - mine).abs().amax(-1) > tolerance
        assert not (apart & ~tied).any(), "logits differ, and no router near-tie explains it"
        top = theirs.topk(2, dim=-1).values
        other = theirs.argmax(-1) != mine.argmax(-1)
        near = top[:, 0] - top[:, 1] < LOGIT_TIE
        assert not (other & ~near & ~tied).any(), "another token, and no near-tie explains it"
        excused += int((apart | other).sum())
    assert excused <= EXCUSED_SHARE * (len(result.chunked) + STEPS)


def test_linear_attention_alone_agrees(tmp_path: Path) -> None:
    """Drawn patterns hold at least one full-attention layer, which transformers needs to step."""
    folder = random_checkpoint(
        tmp_path, 1, num_hidden_layers=3, layer_types=["linear_attention"] * 3
    )
    ids = torch.arange(90) % draw_config(1)["vocab_size"]
    want, _ = Oracle(folder).prefill(ids)
    ours = load_model(folder)
    got = ours.prefill(ids, ours.new_state(), all_logits=True)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_packed_and_sharded_checkpoints_are_the_same_model(tmp_path: Path) -> None:
    config = draw_config(2)
    tensors = draw_tensors(config, 2, deviation=0.05)
    packed = pack_experts(config, tensors)
    single = write(tmp_path / "single", config, tensors)
    ids = torch.arange(40)
    want, _ = Oracle(single).prefill(ids)
    for folder in (
        single,
        write(tmp_path / "sharded", config, tensors, shards=4),
        write(tmp_path / "packed", config, packed),
        write(tmp_path / "packed and sharded", config, packed, shards=3),
        write(tmp_path / "with mtp", config, tensors | {"mtp.fc.weight": torch.zeros(2, 2)}),
    ):
        ours = load_model(folder)
        got = ours.prefill(ids, ours.new_state(), all_logits=True)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_a_text_model_beside_a_vision_tower_is_the_same_model(family: str, tmp_path: Path) -> None:
    """Qwen3.5 is published so: names of `model.language_model`, experts packed, a head for MTP."""
    config = draw(family, 6)
    tensors = draw_tensors(config, 6, deviation=0.05)
    wrapped, renamed = wrap(config, pack_experts(config, tensors))
    ids = torch.arange(40)
    alone, beside = write(tmp_path / "alone", config, tensors), tmp_path / "beside"
    write(beside, wrapped, renamed | {"mtp.norm.weight": torch.zeros(2)}, shards=3)
    want, _ = Oracle(alone).prefill(ids)
    ours = load_model(beside)
    torch.testing.assert_close(
        ours.prefill(ids, ours.new_state(), all_logits=True), want, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(Oracle(beside).prefill(ids)[0], want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_beside_a_vision_tower_the_whole_model_says_whether_its_head_is_the_embedding(
    tied: bool, tmp_path: Path
) -> None:
    """transformers writes the flag of the text model too, at its default."""
    config = draw("qwen3_5", 6) | {"tie_word_embeddings": tied}
    tensors = draw_tensors(config, 6, deviation=0.05)
    wrapped, renamed = wrap(config, tensors)
    wrapped["text_config"] = config | {"tie_word_embeddings": not tied}
    ids = torch.arange(20)
    want, _ = Oracle(write(tmp_path / "alone", config, tensors)).prefill(ids)
    ours = load_model(write(tmp_path / "beside", wrapped, renamed))
    got = ours.prefill(ids, ours.new_state(), all_logits=True)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_weights_load(stored: torch.dtype, tmp_path: Path) -> None:
    """Computed in fp32, a checkpoint stored in 16 bits is exactly its rounded weights."""
    config = draw_config(3)
    tensors = {
        name: tensor.to(stored) for name, tensor in draw_tensors(config, 3, deviation=0.05).items()
    }
    folder = write(tmp_path, config, tensors)
    ids = torch.arange(80)
    want, _ = Oracle(folder).prefill(ids)
    ours = load_model(folder, dtype=torch.float32)
    got = ours.prefill(ids, ours.new_state(), all_logits=True)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_bf16_products_stay_close(tmp_path: Path) -> None:
    """The default for 16-bit checkpoints: products in bf16, everything between them in fp32.

    The bound is bf16's unit roundoff, 2^-8, times the root of the products a token passes through
    (about 6 a layer, 5 layers), relative to the spread of the logits. Chunked and stepwise differ
    by no more than that from fp32, hence from each other.
    """
    config = draw_config(4)
    tensors = {
        name: tensor.bfloat16() for name, tensor in draw_tensors(config, 4, deviation=0.05).items()
    }
    folder = write(tmp_path, config, tensors)
    ids = torch.arange(90)
    want, margins = Oracle(folder).prefill(ids)
    clear = int((margins < 0.05).int().argmax()) or len(ids)  # up to the first near-tie for bf16
    ours = load_model(folder)
    chunked = ours.prefill(ids, ours.new_state(), all_logits=True)
    state = ours.new_state()
    stepwise = torch.stack([ours.decode(token, state) for token in ids.tolist()])
    bound = 2**-8 * 30**0.5 * want.std()
    for got in (chunked, stepwise):
        error = (got - want)[:clear].square().mean().sqrt()
        assert 0 < error < bound


@pytest.mark.parametrize(
    ("family", "packed"),
    [("qwen3_next", False), ("qwen3_next", True), ("qwen3_5", False), ("qwen3_5_moe", False)],
)
def test_fp8_checkpoint_agrees_on_the_dequantised_weights(
    family: str, packed: bool, tmp_path: Path
) -> None:
    """Blocks of 32 × 48 against sizes that are no multiples of them: ragged edges everywhere."""
    rows, columns = 32, 48
    numbers = torch.Generator().manual_seed(5)
    config = draw(family, 5)
    tensors = draw_tensors(config, 5, deviation=0.05)
    if packed:
        tensors = pack_experts(config, tensors)
    stored, plain = {}, {}
    for name, tensor in tensors.items():
        kept = (
            "embed",
            "lm_head",
            "norm",
            "conv1d",
            "gate.weight",
            "in_proj_b",
            "in_proj_a",
            "_log",
            "bias",
        )
        if tensor.ndim < 2 or any(part in name for part in kept):
            stored[name] = plain[name] = tensor
            continue
        blocks = (-(-tensor.shape[-2] // rows), -(-tensor.shape[-1] // columns))
        exponents = torch.randint(-12, -8, (*tensor.shape[:-2], *blocks), generator=numbers)
        scale = 2.0 ** exponents.float()
        spread = torch.kron(scale, torch.ones(rows, columns))
        spread = spread[..., : tensor.shape[-2], : tensor.shape[-1]]
        stored[name] = (tensor / spread).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
        plain[name] = stored[name].float() * spread
    quantisation = {"quant_method": "fp8", "weight_block_size": [rows, columns], "fmt": "e4m3"}
    plain_config = config
    if family != "qwen3_next":
        config, stored = wrap(config, stored)
    fp8 = write(tmp_path / "fp8", config | {"quantization_config": quantisation}, stored)
    ids = torch.arange(75)
    want, _ = Oracle(write(tmp_path / "plain", plain_config, plain)).prefill(ids)
    ours = load_model(fp8, dtype=torch.float32)
    got = ours.prefill(ids, ours.new_state(), all_logits=True)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
