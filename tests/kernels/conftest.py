"""Kernel tests draw fresh input in every run; pytest shows the seed of one that fails."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_random_input() -> Iterator[None]:
    with torch.random.fork_rng():  # other tests of this worker draw what they always draw
        print(f"torch.manual_seed({torch.seed()})")
        yield
