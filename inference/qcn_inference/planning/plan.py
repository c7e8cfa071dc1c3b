"""Where a model's weights lie on a machine, and what speed that allows at best.

A plan is one of three: everything on the GPU; all but some experts on the GPU, the experts in
pinned host memory and as many of them as fit in slots on the GPU; everything on the CPU. Where none
fits, there is a refusal that says what is missing. Pure arithmetic: nothing is allocated here.

Times are floors: bytes over bandwidth or operations over rate, whichever takes longer. What is
reached is slower; `qcn bench` measures it. Which experts a token needs is taken as equally likely
for all, so that slots for half of the experts save half of the reading; real routers repeat
themselves, which makes it less.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qcn_inference.device_memory import CHECKPOINTS_SHARE
from qcn_inference.pages import PAGE
from qcn_inference.passes import BESIDE_HOST, ON_GPU, PassLimits
from qcn_inference.planning.footprint import DraftHead, Footprint
from qcn_inference.planning.machine import Gpu, Machine
from qcn_inference.step_cost import ExpertReads, StepCost

Placement = Literal["gpu", "gpu and host", "cpu"]
Head = Literal["none", "loaded", "no room", "not worth it"]
"""What becomes of the checkpoint's head for drafts."""

HOST_SHARE = 0.75
"""Of the host memory that is free: the rest is the editor's, the builds', and the page cache's."""
PINNED_SHARE = 0.85
"""Of the same, for experts and the copies of what was read, which lie there pinned as well."""
CPU_WORKSPACE = 2**29
LONGEST, SHORTEST = 262_144, 8_192
"""Tokens of a context: halved from the first on until it fits, down to the second."""
CHECKPOINTS = 4
"""The fewest there must be room for on the GPU: what is resumed, what is read, two between."""
POSITION = 16_384
"""Tokens of context behind which times are predicted, or all there is room for."""
GHOST_PROMPT, GHOST_TOKENS = 300, 20
"""Tokens read and generated for a ghost text behind a context."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A model on a machine. Bytes are those of the GPU unless they say otherwise."""

    footprint: Footprint
    machine: Machine
    placement: Placement
    context: int  # tokens whose KV has room
    slots: int  # experts that have a place on the GPU at a time; all of them, or 0 on the CPU
    cache_bytes: int  # left over for checkpoints and further contexts
    host_bytes: int  # host memory that is taken: weights and copies of the context's caches
    head: Head = "none"

    @property
    def slot_share(self) -> float:
        """The share of the experts that has a place on the GPU."""
        return self.slots / self.footprint.experts if self.footprint.experts else 1.0

    @property
    def missing_on_cpu(self) -> bool:
        """Whether an expert that decode misses is computed on the CPU, not copied to the GPU."""
        return self._expert_on_cpu < self._expert_over_link

    def decode_bytes(self, position: int) -> int:
        """What one token behind so many reads and writes: weights, state, keys and values."""
        chosen = self.footprint.sparse_layers * self.footprint.config.num_experts_per_tok
        return self._shared_bytes(position) + chosen * self.footprint.expert_bytes

    def _shared_bytes(self, position: int) -> int:
        foot = self.footprint
        return foot.core_bytes + 2 * foot.checkpoint_bytes + foot.kv_bytes * position

    def decode_seconds(self, position: int) -> float:
        """The least time for one token behind so many."""
        foot = self.footprint
        if self.placement != "gpu and host":
            return self.decode_bytes(position) / self._bandwidth
        chosen = foot.sparse_layers * foot.config.num_experts_per_tok
        rest = self._shared_bytes(position) / self._bandwidth
        return rest + chosen * self._expert_seconds()

    def _expert_seconds(self) -> float:
        """The least time that one of a token's experts adds, where only some have slots."""
        on_gpu = self.footprint.expert_bytes / self._bandwidth
        if not self.missing_on_cpu:  # the GPU reads them when the link has brought the last
            return on_gpu + (1 - self.slot_share) * self._expert_over_link
        # Both compute at once; at best the CPU gets no fewer than end when the GPU's do.
        share = min(self.slot_share, self._expert_on_cpu / (self._expert_on_cpu + on_gpu))
        return max(share * on_gpu, (1 - share) * self._expert_on_cpu)

    @property
    def expert_reads(self) -> ExpertReads | None:
        """What an expert takes, where only some have slots; a verifying step copies all others."""
        if self.placement != "gpu and host":
            return None
        on_gpu = float(self.footprint.expert_bytes)
        over_link = (1 - self.slot_share) * self._expert_over_link * self._bandwidth
        copied, head = on_gpu + over_link, self.footprint.head
        return ExpertReads(
            stepping=self._expert_seconds() * self._bandwidth,
            verifying=copied,
            guessing=copied if head is None or head.alike else on_gpu,
        )

    @property
    def head_pays(self) -> bool:
        """Whether drafts by the head promise to pay for what they read."""
        cost = StepCost.of(self.footprint.config, self.expert_reads)
        return cost.head_pays(min(POSITION, self.context))

    def prefill_seconds(self, tokens: int, position: int = 0) -> float:
        """The least time to read so many tokens behind so many."""
        limits = BESIDE_HOST if self.placement == "gpu and host" else ON_GPU
        passes = _passes(position, position + tokens, limits)
        return sum(self._pass_seconds(start, end) for start, end in passes)

    def ghost_text_seconds(self, position: int) -> float:
        """The least time to a short completion behind a context that has been read."""
        behind = position + GHOST_PROMPT
        reading = self.prefill_seconds(GHOST_PROMPT, position)
        return reading + GHOST_TOKENS * self.decode_seconds(behind)

    def _pass_seconds(self, start: int, end: int) -> float:
        foot = self.footprint
        operations = foot.config.prefill_operations(start, end)
        in_fp8 = foot.fp8_operations * (end - start)
        multiplying = (operations - in_fp8) / self._rate + in_fp8 / self._fp8_rate
        needed = foot.experts * foot.read_share(end - start) * foot.expert_bytes
        over_link = 0.0
        if self.placement == "gpu and host":
            # Two layers' worth of slots are windows for what passes through.
            stay = max(0, self.slots - 2 * foot.config.num_experts) / foot.experts
            over_link = needed * (1 - stay) / self._gpu.link
        read = foot.core_bytes + needed + foot.kv_bytes * end
        return max(multiplying, read / self._bandwidth, over_link)

    @property
    def _gpu(self) -> Gpu:
        gpu = self.machine.gpu
        if gpu is None:
            raise ValueError("this plan is for no GPU")
        return gpu

    @property
    def _bandwidth(self) -> float:
        return self.machine.bandwidth if self.placement == "cpu" else self._gpu.bandwidth

    @property
    def _rate(self) -> float:
        return self.machine.rate if self.placement == "cpu" else self._gpu.rate

    @property
    def _fp8_rate(self) -> float:
        """Of products with FP8 weights; where they are not multiplied as such, they are as bf16."""
        gpu = self.machine.gpu
        if self.placement == "cpu" or gpu is None or gpu.fp8_rate is None:
            return self._rate
        return gpu.fp8_rate

    @property
    def _expert_over_link(self) -> float:
        return self.footprint.expert_bytes / self._gpu.link if self.machine.gpu else math.inf

    @property
    def _expert_on_cpu(self) -> float:
        """One token in one expert: its weights are read once, whatever is computed with them."""
        foot, machine = self.footprint, self.machine
        read = foot.expert_bytes / machine.bandwidth
        multiplied = foot.expert_operations / machine.rate
        if machine.expert_rates is None:
            return max(read, multiplied)
        weights = foot.expert_operations / 2
        return max(read, multiplied, weights / machine.expert_rates.of(foot.format.expert_bits))


Place = Callable[[Footprint, Machine, int, DraftHead | None], Plan | None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """No plan fits; what is missing, and what to do."""

    footprint: Footprint
    missing: str
    remedy: str


def plan(footprint: Footprint, machine: Machine, *, longest: int = LONGEST) -> Plan | Refusal:
    """Choose the fastest placement that fits, with the longest context up to `longest` tokens.

    A GPU that holds all but the experts is preferred to the CPU, whatever the context's length.
    """
    longest = min(longest, footprint.config.max_position_embeddings)
    for place in (_on_gpu, _beside_host, _on_cpu):
        for context in _lengths(longest):
            found = place(footprint, machine, context, None)
            if found is not None:
                return _with_head(found, place, footprint)
    return _refusal(footprint, machine, _lengths(longest)[-1])


def least_on_gpu(foot: Footprint, host_bytes: int) -> int:
    """Count the fewest bytes with which a plan for a GPU is made, beside so much host memory."""
    context = _lengths(foot.config.max_position_embeddings)[-1]
    beside = foot.working_bytes + _room(foot, context)
    whole = beside + foot.all_bytes
    if not foot.experts or foot.experts * foot.expert_bytes > HOST_SHARE * host_bytes:
        return whole
    return min(whole, beside + foot.resident_bytes + _windows_bytes(foot))


def wanted_on_gpu(foot: Footprint) -> int:
    """Count the bytes beyond which a GPU is of no more use to one context of full length."""
    context = min(LONGEST, foot.config.max_position_embeddings)
    wanted = foot.working_bytes + foot.all_bytes + _room(foot, context)
    if foot.head is not None:
        wanted += foot.head.core_bytes + foot.head.expert_bytes + foot.head_cache_bytes
    return wanted


def _windows_bytes(foot: Footprint) -> int:
    """Slots for two whole layers, the fewest with which experts may lie in host memory."""
    return min(foot.experts, 2 * foot.config.num_experts) * foot.expert_bytes


def _with_head(found: Plan, place: Place, foot: Footprint) -> Plan:
    """Give the head for drafts room where there is some, never at the cost of the context.

    Beside experts in host memory it has to pay: what it drafts brings more of them over the link.
    """
    if foot.head is None:
        return found
    with_head = place(foot, found.machine, found.context, foot.head)
    if with_head is None:
        return replace(found, head="no room")
    if with_head.placement == "gpu and host" and not with_head.head_pays:
        return replace(found, head="not worth it")
    return with_head


def _passes(start: int, stop: int, limits: PassLimits) -> Iterator[tuple[int, int]]:
    """About what is read at once, as `passes.py` limits it: experts are read once for each."""
    while start < stop:
        within = math.isqrt(start**2 + 2 * limits.pairs) - start  # tokens that see so many pairs
        end = min(stop, start + max(1, min(limits.tokens, within)))
        yield start, end
        start = end


def smaller(failed: Plan) -> Plan | Refusal:
    """The plan to try next where memory ran out under this one, though it should have fitted.

    It expects an eighth less of the memory that ran out than the plan before, so that repeating
    this ends with a refusal.
    """
    machine = failed.machine
    if failed.placement == "cpu" or machine.gpu is None:
        machine = replace(machine, free_bytes=machine.free_bytes * 7 // 8)
    else:
        machine = replace(machine, gpu=replace(machine.gpu, free_bytes=_less(machine.gpu)))
    return plan(failed.footprint, machine, longest=failed.context)


def _less(gpu: Gpu) -> int:
    return gpu.free_bytes * 7 // 8


def _lengths(longest: int) -> Sequence[int]:
    def halved() -> Iterator[int]:
        length = longest
        while length > SHORTEST:
            yield length
            length //= 2
        yield min(longest, SHORTEST)

    return list(halved())


def _on_gpu(foot: Footprint, machine: Machine, context: int, head: DraftHead | None) -> Plan | None:
    if machine.gpu is None:
        return None
    left = machine.gpu.free_bytes - foot.working_bytes - foot.all_bytes - _room(foot, context)
    host = min(_caches(foot, context), int(PINNED_SHARE * machine.free_bytes))  # or fewer are kept
    if head is not None:
        left -= head.core_bytes + head.expert_bytes + foot.head_cache_bytes
    if left < 0:
        return None
    return Plan(foot, machine, "gpu", context, foot.experts, left, host, _loaded(head))


def _beside_host(
    foot: Footprint, machine: Machine, context: int, head: DraftHead | None
) -> Plan | None:
    """Experts in host memory. Slots for two whole layers are the least: one is read while the next
    is on its way. The head's lie there too if they may share the slots, else on the GPU."""
    if machine.gpu is None or not foot.experts:
        return None
    experts = foot.experts * foot.expert_bytes
    left = machine.gpu.free_bytes - foot.working_bytes - foot.resident_bytes - _room(foot, context)
    if head is not None:
        experts += head.expert_bytes if head.alike else 0
        left -= head.core_bytes + foot.head_cache_bytes + (0 if head.alike else head.expert_bytes)
    host = experts + _caches(foot, context)
    if experts > HOST_SHARE * machine.free_bytes or host > PINNED_SHARE * machine.free_bytes:
        return None
    slots = min(foot.experts, left // foot.expert_bytes)
    least = min(foot.experts, 2 * foot.config.num_experts)
    if slots < least:
        return None
    spare = left - slots * foot.expert_bytes
    return Plan(foot, machine, "gpu and host", context, slots, spare, host, _loaded(head))


def _on_cpu(foot: Footprint, machine: Machine, context: int, head: DraftHead | None) -> Plan | None:
    """With the head for drafts, which is small there beside the rest."""
    del head
    taken = _bytes_on_cpu(foot, context)
    if taken > int(HOST_SHARE * machine.free_bytes):
        return None
    there = replace(foot, format=foot.format.on_cpu())
    return Plan(there, machine, "cpu", context, 0, 0, taken, _loaded(foot.head))


def _bytes_on_cpu(foot: Footprint, context: int) -> int:
    there = replace(foot, format=foot.format.on_cpu())
    head = 0 if foot.head is None else foot.head.core_bytes + foot.head.expert_bytes
    head = round(head * there.format.other_bits / foot.format.other_bits)
    return there.all_bytes + head + _caches(there, context) + CPU_WORKSPACE


def _loaded(head: DraftHead | None) -> Head:
    return "none" if head is None else "loaded"


def _caches(foot: Footprint, context: int) -> int:
    """A context's KV and the checkpoints that it cannot do without."""
    return foot.kv_bytes * context + CHECKPOINTS * foot.checkpoint_bytes


def _room(foot: Footprint, context: int) -> int:
    """What a GPU needs for them: of what states get there a share is for checkpoints alone."""
    pages = foot.kv_bytes * (context + PAGE)
    return max(_caches(foot, context), math.ceil(pages / (1 - CHECKPOINTS_SHARE)))


def _refusal(foot: Footprint, machine: Machine, context: int) -> Refusal:
    on_cpu = _bytes_on_cpu(foot, context)
    usable = int(HOST_SHARE * machine.free_bytes)
    missing = (
        f"on the CPU it takes {_gb(on_cpu)} of memory with a context of {context:,} tokens; "
        f"{_gb(usable)} may be used here ({HOST_SHARE:.0%} of what is free)"
    )
    if machine.gpu is not None:
        least = foot.resident_bytes + _room(foot, context) + foot.working_bytes
        least += _windows_bytes(foot)
        missing += (
            f"; else at least {_gb(least)} of {machine.gpu.name}'s memory, "
            f"of which {_gb(machine.gpu.free_bytes)} are free"
        )
        if foot.experts:
            missing += f", and {_gb(foot.experts * foot.expert_bytes)} of memory for its experts"
    remedy = (
        "Choose a smaller model (qcn-nano runs everywhere), end what else holds the memory, or set "
        "qcn.engine.url to a server that has it"
    )
    if foot.experts and foot.format.name != "int4":
        remedy = "Convert it: qcn models convert SRC DST --experts int4. Or choose a smaller model"
    return Refusal(foot, missing, remedy)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
