"""A tokenizer and a model of the recipe's kind, small enough for tests."""

from functools import cache

from qcn_nano.model import nano_config
from qcn_nano.tokenizer import PlainText, train_tokenizer
from tokenizers import Tokenizer
from transformers import Qwen3NextConfig

SAMPLE = '''import os


class Shelf:
    """Things in order."""

    def __init__(self, items: list[str]) -> None:
        self.items = items

    def first(self) -> str:
        return self.items[0]


def count(shelf: Shelf) -> int:
    total = 0
    for item in shelf.items:
        if item:
            total += len(item)
    return total
'''


@cache
def toy_tokenizer() -> Tokenizer:
    return train_tokenizer([SAMPLE] * 4, vocab_size=384)


@cache
def toy_plain() -> PlainText:
    return PlainText(toy_tokenizer())


def toy_config() -> Qwen3NextConfig:
    return nano_config(
        384,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=8,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
    )
