"""On the CPU the kernels do without Triton: there is none for macOS, and a GPU is no condition."""

import subprocess
import sys
from pathlib import Path

from deadlines import DEADLINE_SECONDS

KERNELS = Path(__file__).parents[2] / "kernels"

PROGRAM = """
import sys
sys.modules["triton"] = None  # whoever imports it fails
import torch
from qcn_kernels import attention, causal_conv1d, fp8, gated_delta_net, gated_delta_rule
from qcn_kernels import gating, groupwise, linear, moe, paged_attention, rms_norm, rotary, sampling

ones = torch.ones
x = ones(70, 8)
causal_conv1d.causal_conv1d(x, weight=ones(4, 8), state=ones(3, 8))
causal_conv1d.causal_conv1d_step(x[0], weight=ones(4, 8), state=ones(3, 8))
rms_norm.rms_norm(x, scale=ones(8), eps=1e-6)
rms_norm.gated_rms_norm(x, gate=x, scale=ones(8), eps=1e-6)
rms_norm.add_rms_norm(x, added=x, scale=ones(8), eps=1e-6, dtype=torch.bfloat16)
cos, sin = rotary.rotary_tables(torch.arange(70), rotary_dim=4, theta=100.0)
heads = ones(70, 2, 8)
rotary.rms_norm_rotary(heads, scale=ones(2, 8), eps=1e-6, cos=cos, sin=sin, dtype=torch.bfloat16)
gated_delta_rule.gated_delta_rule_on_grid(
    q=heads, k=heads, v=heads, g=-ones(70, 2), beta=ones(70, 2), state=ones(2, 8, 8),
    grid=gated_delta_rule.chunk_grid([70]), checkpoints=ones(0, 2, 8, 8),
)
_, verified = gated_delta_rule.verify_gated_delta_rule(
    q=heads[:4], k=heads[:4], v=heads[:4], g=-ones(4, 2), beta=ones(4, 2), state=ones(2, 8, 8)
)
gated_delta_rule.commit_gated_delta_rule(verified, 2, state=ones(2, 8, 8))
weights = gated_delta_net.DeltaNetWeights(
    conv=ones(4, 48), neg_a=-ones(2), dt_bias=ones(2), norm=ones(8), eps=1e-6, key_heads=2,
    key_dim=8,
)
gated_delta_net.step(
    ones(68), weights=weights, ring=ones(4, 48), position=torch.tensor([3]),
    recurrent=ones(2, 8, 8),
)
number = torch.ones(1, dtype=torch.int32)
pages = ones(2, 2, 64, 8)
kv = paged_attention.PagedKv(pages, pages, table=number, length=64 * number, max_length=64)
paged_attention.append(kv, k=heads[:3], v=heads[:3])
paged_attention.paged_attention_decode(heads[:1], kv)
packed = groupwise.quantise(ones(64, 32), torch.float32)
moe.experts(ones(3, 32), weights=ones(3, 1), chosen=torch.zeros(3, 1, dtype=torch.int64),
            gate_up=packed, down=groupwise.quantise(ones(32, 32), torch.float32))
weights, chosen = moe.route(ones(70, 5), top_k=2, normalise=True)
routed = {"weights": weights, "chosen": chosen}
matrices = {"gate_up": ones(5, 6, 8), "down": ones(5, 8, 3)}
moe.experts(x, **routed, **matrices)
moe.add_experts(x, x, **routed, **matrices,
                shared=moe.SharedExpert(ones(70, 1), ones(70, 6), ones(8, 3)))
gating.gated(x, gate=x, gating="silu")
moe.experts_step(x[:2], weights=weights[:2], chosen=chosen[:2], gate_up=ones(5, 6, 8),
                 down=ones(5, 8, 3))
now = rms_norm.normed(x[0], scale=ones(8), eps=1e-6, dtype=torch.float32)
moe.add_experts_step(x[0], now, weights=weights[0], chosen=chosen[0], gate_up=ones(5, 6, 8),
                     down=ones(5, 8, 3), shared=moe.SharedExpert(ones(1), ones(6), ones(8, 3)))
linear.add_linear_step(x[0], linear.linear_step(now, ones(8, 8)), ones(8, 8), gate=x[1])
sampling.greedy(x)
sampling.sample(x, temperature=1.0, top_k=4, top_p=0.9, uniform=0.5 * ones(70))
"""


def test_every_operation_runs_on_the_cpu_where_triton_cannot_be_imported() -> None:
    subprocess.run(
        [sys.executable, "-c", PROGRAM],
        check=True,
        env={"PYTHONPATH": str(KERNELS), "OMP_NUM_THREADS": "1"},
        timeout=DEADLINE_SECONDS,
    )
