"""GGUF: the codes of every type are kept bit for bit, and the model is the one it was made of."""

import contextlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import encode, quantised_experts, write_gguf
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle
from qcn_inference.checkpoint import load_model
from qcn_inference.convert import convert
from qcn_inference.errors import CheckpointError
from qcn_inference.formats.gguf import read_gguf
from qcn_inference.formats.gguf_blocks import TYPES, TensorType, to_matrices
from qcn_inference.tokenizer import Tokenizer
from random_checkpoints import Config, draw_config, draw_tensors, write_checkpoint
from sampling import examples
from torch import Tensor

from benchmarks.checkpoints import NANO
from benchmarks.peers import LLAMA_CPP
from benchmarks.peers import gguf as peers_gguf

QUANTISED = [kind for kind in TYPES.values() if kind.repack is not None]
CONFIG: Config = draw_config(3) | {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 64,
    "mlp_only_layers": [],
    "attention_bias": False,
    "norm_topk_prob": True,  # the architecture's, which the file does not repeat
    "vocab_size": 97,
    "eos_token_id": 96,
}
IDS = torch.arange(60)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return draw_tensors(CONFIG, 3, deviation=0.05)


def converted(origin: Path, folder: Path) -> Path:
    convert(origin, folder, lambda *_: None, int4=False, threads=1)
    return folder


def logits(folder: Path) -> Tensor:
    model = load_model(folder, dtype=torch.float32)
    return model.prefill(IDS, model.new_state(), all_logits=True)


@pytest.mark.long
@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
@examples(sample=10, full=300)
@given(data=st.data())
def test_repacked_codes_stand_for_the_same_numbers_bit_for_bit(
    kind: TensorType, data: st.DataObject
) -> None:
    """Any bytes are a block; what is no number in theirs is none in ours."""
    count, rows, blocks = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    raw = random.integers(0, 256, (count, rows, blocks * kind.size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        want = torch.from_numpy(gguf.quants.dequantize(raw, Kind[kind.name]))
    got = to_matrices(torch.from_numpy(raw), kind, torch.float32).dequantised()
    number = ~want.isnan()
    assert torch.equal(got.isnan(), ~number)
    assert torch.equal(got[number], want[number])


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (Kind.Q4_K, Kind.Q6_K),  # as Q4_K_M mixes them
        (Kind.Q5_K, Kind.Q8_0),
        (Kind.MXFP4, Kind.MXFP4),
        (Kind.Q4_K, Kind.BF16),
    ],
    ids=lambda kind: kind.name,
)
def test_the_model_agrees_with_transformers_on_the_dequantised_weights(
    up: Kind, down: Kind, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    kinds = {"gate": up, "up": up, "down": down}
    raws, after = quantised_experts(tensors, kinds)
    want, _ = Oracle(write_checkpoint(tmp_path / "plain", CONFIG, after)).prefill(IDS)
    file = write_gguf(tmp_path / "model.gguf", CONFIG, tensors, experts=raws, kinds=kinds)
    got = logits(converted(file, tmp_path / "copy"))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_floats_give_the_model_they_were_made_of(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    """All that the converter changed is undone, exactly but for a logarithm and adding one."""
    file = write_gguf(tmp_path / "model.gguf", CONFIG, tensors)
    copy = load_model(converted(file, tmp_path / "copy"))
    original = load_model(write_checkpoint(tmp_path / "original", CONFIG, tensors))
    assert copy.config == original.config
    torch.testing.assert_close(
        copy.prefill(IDS, copy.new_state(), all_logits=True),
        original.prefill(IDS, original.new_state(), all_logits=True),
        atol=2e-5,
        rtol=0,
    )


def test_matrices_outside_experts_become_bf16(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Q8_0 throughout, as a model in 8 bits is published; router and vectors are floats there."""
    after = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "gate.weight" not in name:
            stored = encode(tensor, Kind.Q8_0)[1]
            after[name] = stored if ".experts." in name else stored.bfloat16().float()
    want, _ = Oracle(write_checkpoint(tmp_path / "plain", CONFIG, after)).prefill(IDS)
    file = write_gguf(tmp_path / "model.gguf", CONFIG, tensors, matrices=Kind.Q8_0)
    got = logits(converted(file, tmp_path / "copy"))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_a_split_file_is_one_model(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    want = logits(
        converted(write_gguf(tmp_path / "model.gguf", CONFIG, tensors), tmp_path / "whole")
    )
    (tmp_path / "set").mkdir()
    write_gguf(tmp_path / "set" / "m.gguf", CONFIG, tensors, most_tensors=20)
    parts = sorted((tmp_path / "set").iterdir())
    assert len(parts) == 2
    assert torch.equal(logits(converted(parts[1], tmp_path / "by a part")), want)
    assert torch.equal(logits(converted(tmp_path / "set", tmp_path / "by the folder")), want)
    parts[0].unlink()
    with pytest.raises(CheckpointError, match=r"m-00001-of-00002.gguf: no such file.* 1 of them"):
        converted(parts[1], tmp_path / "another")


def test_the_tokenizer_comes_with_it(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", CONFIG, tensors)
    tokenizer = json.loads((converted(file, tmp_path / "copy") / "tokenizer.json").read_bytes())
    words = ["t", "0", *(f"t{number}" for number in range(94))]
    assert tokenizer["model"]["vocab"] == {word: number for number, word in enumerate(words)}
    assert tokenizer["model"]["merges"] == ["t 0"]
    assert (tmp_path / "copy" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    assert [(each["content"], each["id"]) for each in tokenizer["added_tokens"]] == [
        ("<|endoftext|>", 96)
    ]


@pytest.mark.xdist_group("llama.cpp's converter")  # which writes one file for both
class TestTheEmbeddedModel:
    """As llama.cpp's own converter writes it; where that is set up (`benchmarks peers`)."""

    @pytest.fixture
    def file(self) -> Path:
        if not LLAMA_CPP.exists():
            pytest.skip("llama.cpp's converter is not set up: python -m benchmarks peers")
        return peers_gguf(NANO, "f32")

    def test_the_peers_converter_makes_the_same_model(self, file: Path, tmp_path: Path) -> None:
        copy, original = converted(file, tmp_path / "copy"), load_model(NANO, dtype=torch.float32)
        want = original.prefill(IDS, original.new_state(), all_logits=True)
        torch.testing.assert_close(logits(copy), want, atol=1e-4, rtol=0)

    def test_its_tokenizer_is_the_same(self, file: Path, tmp_path: Path) -> None:
        tokenizers = [
            Tokenizer(folder, 8192) for folder in (NANO, converted(file, tmp_path / "copy"))
        ]
        text = Path(__file__).read_text() + "\n\tif x:  # naïve 'it's' 1234 <|im_end|>\r\n"
        first, second = (tokenizer.encode_plain(text) for tokenizer in tokenizers)
        assert first == second
        first, second = (tokenizer.encode_with_control(text) for tokenizer in tokenizers)
        assert first == second


class TestDamage:
    @pytest.fixture
    def whole(self, tensors: dict[str, Tensor], tmp_path: Path) -> bytes:
        return write_gguf(tmp_path / "whole.gguf", CONFIG, tensors).read_bytes()

    @pytest.mark.parametrize("share", [0.0, 1e-6, 1e-4, 0.002, 0.1, 0.999999])
    def test_cut_short(self, share: float, whole: bytes, tmp_path: Path) -> None:
        file = tmp_path / "model.gguf"
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(
            CheckpointError, match=r"model\.gguf: .* Download the file again"
        ) as caught:
            converted(file, tmp_path / "copy")
        assert caught.value.path == file
        assert not (tmp_path / "copy" / "config.json").exists()

    @pytest.mark.long
    @examples(sample=40, full=1000)
    @given(data=st.data())
    def test_altered_headers_never_crash_or_hang(
        self, data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Any few bytes of the header changed: tensors within the file, or a CheckpointError."""
        file = tmp_path_factory.mktemp("altered") / "model.gguf"
        contents = bytearray(whole)
        places = st.tuples(st.integers(0, 12_000), st.integers(0, 255))
        for place, byte in data.draw(st.lists(places, min_size=1, max_size=4)):
            contents[place] = byte
        file.write_bytes(contents)
        with contextlib.suppress(CheckpointError):
            for found in read_gguf(file).tensors.values():
                assert found.data.sum() >= 0  # it can be read to its end

    def test_of_another_kind(self, tmp_path: Path) -> None:
        file = tmp_path / "model.gguf"
        file.write_bytes(b"PK\x03\x04 a pickle, perhaps")
        with pytest.raises(CheckpointError, match="is no GGUF file"):
            converted(file, tmp_path / "copy")

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("model.layers.1.self_attn.k_proj.weight", "no file holds the tensor"),
            ("model.layers.0.mlp.experts.2.up_proj.weight", "experts of block 0"),
        ],
    )
    def test_without_a_tensor(
        self, name: str, problem: str, tensors: dict[str, Tensor], tmp_path: Path
    ) -> None:
        """Told when it is converted, not when the copy is first loaded."""
        prefix = name.rpartition("experts.")[0]
        lost = {n for n in tensors if n == name or (prefix and n.startswith(prefix) and "up" in n)}
        kept = {n: tensor for n, tensor in tensors.items() if n not in lost}
        file = write_gguf(tmp_path / "model.gguf", CONFIG, kept)
        with pytest.raises(CheckpointError, match=problem):
            converted(file, tmp_path / "copy")
        assert not (tmp_path / "copy" / "config.json").exists()

    @pytest.mark.parametrize(
        "name", ["blk.x.ssm_dt.bias", "blk.-1.sm_dt.bias", "blk.0ssm_dt_bias_"]
    )
    def test_with_a_tensor_of_no_block(self, name: str, whole: bytes, tmp_path: Path) -> None:
        file = tmp_path / "model.gguf"
        file.write_bytes(whole.replace(b"blk.0.ssm_dt.bias", name.encode()))
        with pytest.raises(CheckpointError, match=f"holds the unknown tensor {name}"):
            converted(file, tmp_path / "copy")

    def test_of_an_unknown_type(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        file = write_gguf(tmp_path / "model.gguf", CONFIG, tensors, matrices=Kind.Q4_0)
        with pytest.raises(CheckpointError, match=r"is of GGML type 2; read are BF16, .*Q4_K"):
            converted(file, tmp_path / "copy")

    def test_of_another_architecture(self, tmp_path: Path) -> None:
        file = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(CheckpointError, match="is of the architecture 'llama'"):
            converted(file, tmp_path / "copy")


def test_a_folder_of_gguf_is_not_served_but_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"Run `qcn models convert .*model\.gguf FOLDER`"):
        load_model(tmp_path)
