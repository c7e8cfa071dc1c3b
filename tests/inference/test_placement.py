"""Nothing of a model on a GPU is left on the CPU, and decoding leaves nothing to the host.

No GPU is needed: torch's `meta` device stands for it. Its tensors have shapes and no numbers, so
that whoever looks at one fails, as waiting for the GPU does in the middle of a graph's capture;
kernels are not launched, only looked at. Interpreted kernels show none of this: they run on the
CPU, where everything is anyway.
"""

from pathlib import Path
from typing import Any

import pytest
import qcn_kernels.choice
import torch
from qcn_inference.checkpoint import load_model
from qcn_inference.model import Model
from qcn_kernels.sampling import sample
from random_checkpoints import (
    draw_config,
    draw_mtp_head,
    draw_tensors,
    random_checkpoint,
    write_checkpoint,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
MOST = (2**31 - 1, 65_535, 65_535)  # programs of a launch along each axis
STATES_BYTES = 16 << 20
PROMPT = 300  # tokens: several chunks and pages


def places(*values: Any) -> set[str]:
    """On which devices tensors lie; a number of the host's may stand in any operation."""
    tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor)]
    return {x.device.type for x in tensors if x.ndim}


def compiled_in(param: Any, value: Any) -> Any:
    """What Triton compiles a kernel anew for, of an argument that is no constant."""
    if isinstance(value, Tensor):
        return value.dtype, value.storage_offset() * value.itemsize % 16 == 0
    if isinstance(value, int) and not param.do_not_specialize:
        return value == 1, value % 16 == 0
    return tuple(compiled_in(param, part) for part in value) if isinstance(value, tuple) else None


class OnePlace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on tensors of both devices; without `copies` whatever the host does."""

    def __init__(self, *, copies: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._copies = copies

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = places(args, kwargs)
        result = func(*args, **kwargs)
        if self._copies:
            assert func in COPIES or len(found) <= 1, f"{func} takes tensors of both devices"
        else:
            assert "cpu" not in found | places(result), f"{func} is done by the host"
        return result


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let operations take their kernels; which would have been launched, also with their sizes."""
    from qcn_kernels.launch import Kernel

    names: list[str] = []

    def look(self: Any, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        name = self.fn.__name__
        assert places(args, kwargs) == {"meta"}, name
        assert all(1 <= size <= most for size, most in zip(grid, MOST, strict=False)), (name, grid)
        names.append(name)
        names.append(f"{name} {kwargs} {[*map(compiled_in, self.params, args)]}")

    monkeypatch.setattr(qcn_kernels.choice, "INTERPRETED", True)
    monkeypatch.setattr(Kernel, "launch", look)
    return names


def loaded(folder: Path, seed: int) -> Model:
    model = load_model(random_checkpoint(folder, seed), device="meta")
    model.reserve(STATES_BYTES)
    return model


@pytest.mark.parametrize("seed", range(4))
def test_a_model_on_a_gpu_mixes_nothing_of_the_host_into_it(
    launched: list[str], seed: int, tmp_path: Path
) -> None:
    """Read, resumed from what the host keeps, verified, decoded."""
    with torch.inference_mode(), OnePlace(copies=True):
        model = loaded(tmp_path, seed)
        state = model.new_state()
        model.prefill([1] * PROMPT, state)
        block, checkpoint = state.kv_of(0, PROMPT), state.recurrent_part()
        model.give_back()
        resumed = model.new_state()
        resumed.put_together([block], checkpoint, PROMPT)
        model.verify([1, 2, 3], resumed).commit(2)
        assert model.decode(1, resumed.fork()).device.type == "meta"
    if "linear_attention" in model.config.layer_types:
        assert {"_scan", "_verify_step", "_commit", "_step"} <= set(launched)
    if "full_attention" in model.config.layer_types:
        assert "_attend" in launched


def test_a_head_that_drafts_mixes_nothing_of_the_host_into_it(
    launched: list[str], tmp_path: Path
) -> None:
    config = draw_config(7)
    tensors = draw_tensors(config, 7, deviation=0.05) | draw_mtp_head(config, 8, deviation=0.05)
    with torch.inference_mode(), OnePlace(copies=True):
        model = load_model(write_checkpoint(tmp_path, config, tensors), device="meta", mtp=True)
        assert model.mtp is not None
        state = model.mtp.new_state(model.mtp.new_memory())
        read = model.mtp.read(
            torch.zeros(5, model.config.hidden_size, device="meta"), [1] * 5, state
        )
        assert model.mtp.logits(read).device.type == "meta"
    assert "_attend" in launched


@pytest.mark.parametrize("seed", range(4))
def test_no_request_waits_for_a_kernel_to_be_compiled(
    launched: list[str], seed: int, tmp_path: Path
) -> None:
    """What is launched, and with which sizes it was compiled, has been seen in the warm-up."""
    with torch.inference_mode():
        model = loaded(tmp_path, seed)
        model.warm_up()
        compiled = set(launched)
        # Of one token torch makes up the stride; the published models' are divisible either way.
        for tokens in (2, 40, 700):
            state = model.new_state()
            model.prefill([1] * tokens, state)
            model.verify([1] * 5, state).commit(3)
            logits = model.decode(1, state).unsqueeze(0)
            uniform = torch.zeros(1, device="meta")
            sample(logits, temperature=0.7, top_k=20, top_p=0.9, uniform=uniform)
        assert set(launched) - compiled == set()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_step_is_all_the_devices(
    launched: list[str], seed: int, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in a graph is launched again by itself: the host has no say in it."""
    with torch.inference_mode():
        model = loaded(tmp_path, seed)
        state = model.new_state()
        model.prefill([1] * 10, state)
        decoder = model._decoder
        assert decoder is not None
        model.decode(1, state)  # it takes its seat
        launched.clear()
        for name in ("tensor", "as_tensor"):  # of numbers: their copy is no operation to be seen
            monkeypatch.delattr(torch, name)
        with OnePlace(copies=False):
            decoder._run(state, rows)
    assert launched
