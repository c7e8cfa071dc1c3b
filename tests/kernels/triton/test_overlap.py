"""Launches that overlap read weights alone before the launch in front has ended.

Under the interpreter there is no launch in front. So all that it might write holds NaN whenever a
program begins, and gets its values when that program awaits: what was read before is found out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from fp8_support import random_fp8
from interpreted import Caller, capability_here
from qcn_kernels import chip
from qcn_kernels.fp8 import Fp8Matrices
from qcn_kernels.gated_delta_net.triton import step
from qcn_kernels.gated_delta_net.weights import DeltaNetWeights
from qcn_kernels.linear import Stacked
from qcn_kernels.linear.triton_step import add_linear_step, linear_step
from qcn_kernels.moe.shared import SharedExpert
from qcn_kernels.moe.triton_router import route
from qcn_kernels.moe.triton_step import experts_step
from qcn_kernels.overlap import triton as overlap
from qcn_kernels.paged_attention import PagedKv
from qcn_kernels.paged_attention.triton import append, paged_attention_decode
from qcn_kernels.rms_norm import Normed
from qcn_kernels.rotary.triton import rms_norm_rotary
from torch import Tensor

Hold = Callable[..., None]


class Withheld:
    """Tensors whose values are there only from when a program awaits until the next begins."""

    def __init__(self) -> None:
        """Begin with none."""
        self._values: list[tuple[Tensor, Tensor | None]] = []
        self.awaited = 0

    def hold(self, *tensors: Tensor) -> None:
        """Withhold these from the next program on."""
        self._values += [(tensor, None) for tensor in tensors]

    def begin(self) -> None:
        """Withhold all: a program begins."""
        for at, (tensor, value) in enumerate(self._values):
            assert value is None, "a program ended that had not awaited"
            self._values[at] = tensor, tensor.clone()
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)

    def give(self) -> None:
        """Give all: the program has awaited."""
        self.awaited += 1
        for at, (tensor, value) in enumerate(self._values):
            if value is not None:
                tensor.copy_(value)
                self._values[at] = tensor, None


@contextmanager
def withholding(overlaps: bool) -> Iterator[Withheld]:
    """Interpret launches as those that overlap, or leave them as they are."""
    import triton.language as tl
    from triton.runtime import interpreter

    withheld = Withheld()
    with pytest.MonkeyPatch.context() as patch:
        if overlaps:
            patch.setattr(overlap, "INTERPRETED", False)
            patch.setattr(tl.extra.cuda, "gdc_wait", withheld.give)
            patch.setattr(tl.extra.cuda, "gdc_launch_dependents", lambda: None)
            patch.setattr(tl, "inline_asm_elementwise", lambda *_, **__: None)
            builder = interpreter.interpreter_builder
            place = builder.set_grid_idx

            def begin_at(*at: int) -> None:
                withheld.begin()
                place(*at)

            patch.setattr(builder, "set_grid_idx", begin_at)
        yield withheld


def run(function: Callable[..., Any], *, overlaps: bool, **arguments: Any) -> tuple[Any, int]:
    """Call `function`, which holds what is no weight; return its result and how many awaited."""
    with withholding(overlaps) as withheld:
        hold = withheld.hold if overlaps else lambda *_: None
        return function(hold, **arguments), withheld.awaited


def project(hold: Hold, x: Tensor, scale: Tensor, weight: Stacked) -> Tensor:
    hold(x)
    return linear_step(Normed(x, scale, 1e-6), weight, None)


def project_back(hold: Hold, to: Tensor, x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    hold(to, x, gate)
    add_linear_step(to, x, weight, None, gate=gate, gating="silu")
    return to


def mix(
    hold: Hold,
    projected: Tensor,
    weights: DeltaNetWeights,
    ring: Tensor,
    position: Tensor,
    recurrent: Tensor,
) -> tuple[Tensor, ...]:
    hold(projected, ring, position, recurrent)
    out = step(projected, weights=weights, ring=ring, position=position, recurrent=recurrent)
    return out, ring, recurrent


def choose(hold: Hold, logits: Tensor) -> tuple[Tensor, ...]:
    hold(logits)
    return route(logits, top_k=3, normalise=True)


def run_experts(
    hold: Hold,
    x: Tensor,
    scale: Tensor,
    weights: Tensor,
    chosen: Tensor,
    projected: Tensor,
    gate_up: Fp8Matrices,
    down: Fp8Matrices,
    shared_down: Tensor,
    to: Tensor,
) -> Tensor:
    """The experts are held too: where they lie in slots, they are copied there between steps."""
    for matrices in (gate_up, down):
        hold(matrices.values, matrices.scale_inv)
    hold(x, weights, chosen, projected, to)
    shared = SharedExpert(projected[-1:], projected[:-1], shared_down)
    return experts_step(
        Normed(x, scale, 1e-6),
        weights=weights,
        chosen=chosen,
        gate_up=gate_up,
        down=down,
        shared=shared,
        to=to,
    )


def attend(
    hold: Hold,
    heads: Tensor,
    scale: Tensor,
    cos: Tensor,
    v: Tensor,
    pages: Tensor,
    table: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor]:
    hold(heads, v, pages, table, length)
    turned = rms_norm_rotary(heads, scale=scale, eps=1e-6, cos=cos, sin=cos, dtype=torch.float32)
    hold(turned)
    kv = PagedKv(pages[0], pages[1], table, length, max_length=600)
    append(kv, k=turned[:, 4:], v=v)
    return paged_attention_decode(turned[:, :4], kv), pages


def drawn_attention() -> dict[str, Any]:
    return {
        "heads": torch.randn(1, 6, 16),
        "scale": torch.randn(6, 16),
        "cos": torch.randn(1, 8),
        "v": torch.randn(1, 2, 16),
        "pages": torch.randn(2, 12, 2, 64, 16),
        "table": torch.randperm(12).to(torch.int32),
        "length": torch.tensor([580], dtype=torch.int32),
    }


def drawn_step() -> dict[str, Any]:
    heads, dim, channels = 4, 16, 128
    weights = DeltaNetWeights(
        conv=torch.randn(4, channels),
        neg_a=-torch.rand(heads),
        dt_bias=torch.randn(heads),
        norm=torch.randn(dim),
        eps=1e-6,
        key_heads=2,
        key_dim=dim,
    )
    return {
        "projected": torch.randn(channels + heads * dim + 2 * heads),
        "weights": weights,
        "ring": torch.randn(4, channels),
        "position": torch.tensor([6]),
        "recurrent": torch.randn(heads, dim, dim),
    }


def drawn_experts() -> dict[str, Any]:
    return {
        "x": torch.randn(256),
        "scale": torch.randn(256),
        "weights": torch.rand(3),
        "chosen": torch.tensor([4, 0, 2]),
        "projected": torch.randn(2 * 128 + 1),
        "gate_up": random_fp8(5, 256, 256),
        "down": random_fp8(5, 256, 128),
        "shared_down": torch.randn(256, 128),
        "to": torch.randn(256),
    }


CASES: dict[Callable[..., Any], Callable[[], dict[str, Any]]] = {
    project: lambda: {
        "x": torch.randn(256),
        "scale": torch.randn(256),
        "weight": Stacked((random_fp8(256, 256), torch.randn(7, 256)), torch.float32),
    },
    project_back: lambda: {
        "to": torch.randn(200),
        "x": torch.randn(75),
        "gate": torch.randn(75),
        "weight": torch.randn(200, 75),
    },
    mix: drawn_step,
    choose: lambda: {"logits": torch.randn(5, 20).bfloat16()},
    run_experts: drawn_experts,
    attend: drawn_attention,
}


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_before_a_launch_awaits_the_one_in_front_it_reads_weights_alone(
    interpreter: Caller, function: Callable[..., Any]
) -> None:
    arguments = CASES[function]()
    held = {name: value.clone() if isinstance(value, Tensor) else value
            for name, value in arguments.items()}  # fmt: skip
    want, none = interpreter(partial(run, function, overlaps=False), **arguments)
    got, awaited = interpreter(partial(run, function, overlaps=True), **held)
    assert none == 0
    assert awaited > 1
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_chip_that_cannot_is_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, overlaps in ((80, False), (89, False), (90, True), (120, True)):
        monkeypatch.setattr(chip, "capability", lambda _, on=capability: on)
        assert ("launch_pdl" in overlap.overlapping(torch.zeros(1))) == overlaps


def chain(x: Tensor, weights: tuple[Tensor, ...], overlaps: bool) -> Tensor:
    """Products of one another in a CUDA graph, which is launched three times."""
    with pytest.MonkeyPatch.context() as patch:
        if not overlaps:
            patch.setattr(overlap, "OVERLAPS", 1000)
        # To fill memory is a launch that awaits all: none is to stand between the products.
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        now, scale = torch.empty_like(x), torch.ones_like(x)

        def products() -> Tensor:
            now.copy_(x)
            for weight in weights:
                add_linear_step(now, linear_step(Normed(now, scale, 1e-6), weight, None), weight,
                                None, gate=None, gating="silu")  # fmt: skip
            return now

        products()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: another may be taking pinned memory.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            products()
        for _ in range(3):
            graph.replay()
        return now.clone()


@pytest.mark.gpu
def test_a_chain_of_launches_in_a_graph_gives_the_same_bits(on_gpu: Caller) -> None:
    """Each product needs all of the one before, and is launched while that still runs."""
    if capability_here() < overlap.OVERLAPS:
        pytest.skip("this chip's launches do not overlap")
    weights = tuple(torch.randn(2048, 2048).bfloat16() for _ in range(16))
    x = torch.randn(2048)
    alone = on_gpu(chain, x=x, weights=weights, overlaps=False)
    for _ in range(3):
        assert torch.equal(on_gpu(chain, x=x, weights=weights, overlaps=True), alone)
