"""A checkpoint's `config.json`, parsed once into a frozen value that refuses what it does not know.

Three families of one architecture are read: `qwen3_next`, and of Qwen3.5 the text model of
`qwen3_5` (dense) and `qwen3_5_moe`, alone or wrapped with a vision tower (`text_config`). So are
both spellings in circulation: the published one (`rope_theta`, `partial_rotary_factor` and
`full_attention_interval` at the top) and that of transformers 5 (`rope_parameters`, `layer_types`).
A value that changes the mathematics in a way the runtime does not implement is an error; keys that
concern training or other libraries are not read at all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from qcn_inference.errors import CheckpointError, not_converted, unreadable

LayerType = Literal["linear_attention", "full_attention"]
FimOrder = Literal["prefix_first", "suffix_first"]
KvCacheDtype = Literal["auto", "fp8"]
"""What a GPU keeps keys and values in, which no config.json says: the model's dtype; or e4m3, which
takes a little more than half of bf16 and is rounded by up to 2^-4."""

# What each family fixes, whatever its config.json says; `_text` marks one without its wrapping.
_FAMILIES: dict[str, dict[str, object]] = {
    "qwen3_next": {},
    "qwen3_5": {
        "num_experts": 0,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 1,
        "shared_expert_intermediate_size": 1,
    },
    "qwen3_5_moe": {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1},
}
# What a wrapped text model may leave to the configuration around it.
_SHARED_KEYS = ("model_type", "tie_word_embeddings", "eos_token_id", "quantization_config")
LONGEST_FOUND = 80  # characters shown of a value that is refused


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape and arithmetic of one model of the family; names as in `config.json`."""

    vocab_size: int
    hidden_size: int
    layer_types: tuple[LayerType, ...]
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    # Gated full attention
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    attention_bias: bool
    rotary_dim: int  # dimensions of a head that turn: head_dim · partial_rotary_factor
    rope_theta: float
    # Gated DeltaNet
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    # Feed-forward
    dense_layers: frozenset[int]  # layers with one plain MLP in the place of experts
    intermediate_size: int  # of a dense layer
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    # Storage
    fp8_block: tuple[int, int] | None  # rows and columns under one scale, where weights are FP8
    # Use
    fim_order: FimOrder = "prefix_first"  # in which it completes best; a key of ours
    has_mtp_head: bool = False  # as it says; what there is, the weights tell

    @property
    def linear_key_dim(self) -> int:
        """Channels of all DeltaNet key heads together."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def linear_value_dim(self) -> int:
        """Channels of all DeltaNet value heads together."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def linear_conv_dim(self) -> int:
        """Channels the convolution runs over: queries, keys and values."""
        return 2 * self.linear_key_dim + self.linear_value_dim

    def prefill_operations(self, start: int, stop: int) -> int:
        """Floating-point operations that reading the tokens from `start` to `stop` takes.

        Two for each weight a token meets, four for each pair of a token and one it attends to, six
        for each element of the recurrent state. The head is left out: it runs once a prompt.
        """
        full = self.layer_types.count("full_attention")
        linear = len(self.layer_types) - full
        heads = self.num_attention_heads * self.head_dim
        attention = 3 * heads + 2 * self.num_key_value_heads * self.head_dim
        deltanet = 2 * self.linear_key_dim + 3 * self.linear_value_dim
        sparse = len(self.layer_types) - len(self.dense_layers)
        experts = self.num_experts_per_tok * self.moe_intermediate_size
        mlp = sparse * (3 * (experts + self.shared_expert_intermediate_size) + self.num_experts)
        mlp += len(self.dense_layers) * 3 * self.intermediate_size
        weights = self.hidden_size * (full * attention + linear * deltanet + mlp)
        state = linear * self.linear_value_dim * self.linear_key_head_dim
        pairs = (stop * (stop + 1) - start * (start + 1)) // 2
        return (stop - start) * (2 * weights + 6 * state) + 4 * full * heads * pairs


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json`, and `generation_config.json` where there is one.

    The latter may name more end-of-sequence ids, and the order of fill-in-the-middle prompts.

    Raises:
        CheckpointError: no such folder or file, not JSON, another architecture, a key missing or of
            the wrong type, or a value that the runtime does not implement.
    """
    if not folder.is_dir():
        if folder.suffix == ".gguf" and folder.is_file():
            raise not_converted(folder)
        problem = "is no folder" if folder.exists() else "no such folder"
        raise CheckpointError(
            folder,
            f"{problem}; expected a checkpoint with config.json and *.safetensors",
            "Name a folder that holds one, or qcn-nano for the embedded model",
        )
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs and not (folder / "config.json").exists():
        raise not_converted(ggufs[0])
    config = _parse(_text_model(_Keys.read(folder / "config.json")))
    generation = folder / "generation_config.json"
    if generation.is_file():
        keys = _Keys.read(generation)
        ids = tuple(dict.fromkeys(config.eos_token_ids + _eos_token_ids(keys)))
        config = replace(config, eos_token_ids=ids, fim_order=_fim_order(keys))
    return config


def parse_config(path: Path, values: Mapping[str, Any]) -> ModelConfig:
    """Parse what `config.json` would hold; errors name `path`. Raises CheckpointError."""
    return _parse(_text_model(_Keys(path, values)))


@dataclass(frozen=True, slots=True)
class _Keys:
    """A JSON object whose keys are taken with the type they must have."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "_Keys":
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(
                path,
                "no such file; a checkpoint folder holds config.json beside its *.safetensors",
                "Download it from where the weights came from",
            ) from error
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                path, f"cannot be read as JSON ({error})", "Download the file again"
            ) from error
        if not isinstance(values, dict):
            raise CheckpointError(path, "holds no JSON object", "Download the file again")
        return cls(path, values)

    def integer(
        self, key: str, default: int | None = None, *, at_least: int = 1, at_most: int = 2**31 - 1
    ) -> int:
        value = self._get(key, default)
        if type(value) is not int or not at_least <= value <= at_most:
            self.refuse(key, f"an integer from {at_least} to {at_most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e12:
            self.refuse(key, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def integers(self, key: str) -> list[int]:
        value = self._get(key, [])
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            self.refuse(key, "a list of integers")
        return value

    def part(self, key: str) -> "_Keys | None":
        """The object under `key`, or None where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return _Keys(self.path, value)

    def refuse(self, key: str, expected: str, remedy: str = "Mend the file") -> NoReturn:
        found = json.dumps(self.values[key]) if key in self.values else "nothing"
        if len(found) > LONGEST_FOUND:
            found = f"{found[:LONGEST_FOUND]}…"
        raise CheckpointError(self.path, f'"{key}" is {found}; expected {expected}', remedy)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            self.refuse(key, "the key to be there", "Use the config.json the weights came with")
        return value


def _text_model(whole: _Keys) -> _Keys:
    """Return the keys of the text model, with what its family fixes in place."""
    values = dict(whole.values)
    if inner := whole.part("text_config"):
        outer = {key: values[key] for key in _SHARED_KEYS if key in values}
        values = outer | {key: value for key, value in inner.values.items() if value is not None}
        if outer.get("tie_word_embeddings") is not None:
            # The head is the whole model's; the part's own flag may be a default that nobody set.
            values["tie_word_embeddings"] = outer["tie_word_embeddings"]
    keys = _Keys(whole.path, values)
    model_type = values.get("model_type")
    family = model_type.removesuffix("_text") if isinstance(model_type, str) else ""
    if family not in _FAMILIES:
        known = ", ".join(f'"{name}"' for name in _FAMILIES)
        keys.refuse("model_type", f"one of {known}", _UNSUPPORTED)
    return _Keys(whole.path, values | _FAMILIES[family])


_UNSUPPORTED = (
    "Use a checkpoint this version supports: Qwen3-Coder-Next, another qwen3_next, or a Qwen3.5"
)


def _parse(keys: _Keys) -> ModelConfig:
    for key, only in (
        ("hidden_act", ("silu",)),
        ("use_sliding_window", (False,)),
        ("attn_output_gate", (True,)),  # of attention
        ("output_gate_type", ("swish", "silu")),  # of Gated DeltaNet
    ):
        if keys.values.get(key) not in (None, *only):
            keys.refuse(key, json.dumps(only[0]), _UNSUPPORTED)

    rotary_dim, rope_theta = _rotary(keys)
    config = ModelConfig(
        vocab_size=keys.integer("vocab_size"),
        hidden_size=keys.integer("hidden_size"),
        layer_types=_layer_types(keys),
        max_position_embeddings=keys.integer("max_position_embeddings", 32768),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
        eos_token_ids=_eos_token_ids(keys),
        num_attention_heads=keys.integer("num_attention_heads"),
        num_key_value_heads=keys.integer("num_key_value_heads"),
        head_dim=keys.integer("head_dim", 256),
        attention_bias=keys.flag("attention_bias", False),
        rotary_dim=rotary_dim,
        rope_theta=rope_theta,
        linear_num_key_heads=keys.integer("linear_num_key_heads"),
        linear_num_value_heads=keys.integer("linear_num_value_heads"),
        linear_key_head_dim=keys.integer("linear_key_head_dim"),
        linear_value_head_dim=keys.integer("linear_value_head_dim"),
        linear_conv_kernel_dim=keys.integer("linear_conv_kernel_dim", 4),
        dense_layers=_dense_layers(keys),
        intermediate_size=keys.integer("intermediate_size", 5632),
        num_experts=keys.integer("num_experts", at_least=0),
        num_experts_per_tok=keys.integer("num_experts_per_tok"),
        norm_topk_prob=keys.flag("norm_topk_prob", True),
        moe_intermediate_size=keys.integer("moe_intermediate_size"),
        shared_expert_intermediate_size=keys.integer("shared_expert_intermediate_size"),
        fp8_block=_fp8_block(keys),
        has_mtp_head=keys.integer("mtp_num_hidden_layers", 0, at_least=0) > 0,
    )
    if config.num_attention_heads % config.num_key_value_heads:
        keys.refuse("num_key_value_heads", f"a divisor of {config.num_attention_heads} heads")
    if config.linear_num_value_heads % config.linear_num_key_heads:
        keys.refuse(
            "linear_num_key_heads", f"a divisor of {config.linear_num_value_heads} value heads"
        )
    if config.num_experts and config.num_experts_per_tok > config.num_experts:
        keys.refuse("num_experts_per_tok", f"at most the {config.num_experts} experts there are")
    return config


def _layer_types(keys: _Keys) -> tuple[LayerType, ...]:
    count = keys.integer("num_hidden_layers", at_most=4096)
    listed = keys.values.get("layer_types")
    if listed is None:
        interval = keys.integer("full_attention_interval", 4)
        return tuple(
            "linear_attention" if (i + 1) % interval else "full_attention" for i in range(count)
        )
    known = ("linear_attention", "full_attention")
    if (
        not isinstance(listed, list)
        or len(listed) != count
        or not all(layer_type in known for layer_type in listed)
    ):
        keys.refuse(
            "layer_types",
            f"linear_attention or full_attention for each of num_hidden_layers, {count}",
        )
    return tuple(listed)


def _rotary(keys: _Keys) -> tuple[int, float]:
    """Return rotary_dim and theta; only unscaled rotary embedding is implemented.

    `mrope` gives each of a token's three positions (time, height, width) some of the dimensions; a
    token of text has the same position three times, which is plain rotary embedding.
    """
    said = [part for key in ("rope_parameters", "rope_scaling") if (part := keys.part(key))]
    for part in said:  # where both are there, transformers goes by the second
        kind = part.values.get("rope_type", part.values.get("type", "default"))
        if kind not in ("default", "mrope"):
            raise CheckpointError(
                keys.path,
                f"rotary scaling of type {json.dumps(kind)[:40]}; expected none",
                "Remove the scaling from config.json: the model reads 262,144 tokens without it",
            )
    rope = said[0] if said else _Keys(keys.path, {})
    theta = (rope if "rope_theta" in rope.values else keys).number("rope_theta", 10_000.0)
    holder = rope if "partial_rotary_factor" in rope.values else keys
    factor = holder.number("partial_rotary_factor", 0.25)
    head_dim = keys.integer("head_dim", 256)
    rotary_dim = int(head_dim * factor)
    if factor > 1 or rotary_dim < 2 or rotary_dim % 2:
        holder.refuse("partial_rotary_factor", f"an even share of the {head_dim} head dimensions")
    return rotary_dim, theta


def _dense_layers(keys: _Keys) -> frozenset[int]:
    count = keys.integer("num_hidden_layers")
    if keys.integer("num_experts", at_least=0) == 0:
        return frozenset(range(count))
    step = keys.integer("decoder_sparse_step", 1)
    listed = keys.integers("mlp_only_layers")
    return frozenset(i for i in range(count) if i in listed or (i + 1) % step)


def _fp8_block(keys: _Keys) -> tuple[int, int] | None:
    quantisation = keys.part("quantization_config")
    if quantisation is None:
        return None
    method = quantisation.values.get("quant_method")
    if method == "groupwise" and "weight_block_size" not in quantisation.values:
        return None  # the work of `qcn models convert` on a checkpoint that was not FP8
    if method not in ("fp8", "groupwise"):
        remedy = "Use the bf16 or the FP8 checkpoint"
        if method in ("gptq", "awq"):
            remedy = f"Run `qcn models convert {keys.path.parent} FOLDER` and serve FOLDER"
        quantisation.refuse("quant_method", '"fp8" with a weight_block_size', remedy)
    block = quantisation.integers("weight_block_size")
    if len(block) != 2 or min(block) < 1:
        quantisation.refuse("weight_block_size", "two sizes such as [128, 128]")
    return block[0], block[1]


def _fim_order(keys: _Keys) -> FimOrder:
    order = keys.values.get("fim_order", "prefix_first")
    if order != "prefix_first" and order != "suffix_first":
        keys.refuse("fim_order", '"prefix_first" or "suffix_first"')
    return "suffix_first" if order == "suffix_first" else "prefix_first"


def _eos_token_ids(keys: _Keys) -> tuple[int, ...]:
    value = keys.values.get("eos_token_id")
    if value is None:
        return ()
    return (
        tuple(keys.integers("eos_token_id"))
        if isinstance(value, list)
        else (keys.integer("eos_token_id", at_least=0),)
    )
