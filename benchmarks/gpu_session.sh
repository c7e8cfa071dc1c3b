#!/bin/sh
# All that a GPU shows in ten minutes, most wanted first; see README.md. Usage: gpu_session.sh OUT
# A part that fails or takes too long is told in OUT/log, and the next begins.
out=$1
mkdir -p "$out"
python=${PYTHON:-python3}
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root" || exit 1
if ls .wheels/*.whl >/dev/null 2>&1; then
	$python -m pip install -q --no-index --no-deps --no-compile --upgrade --target build/carried .wheels/*.whl
fi
peers=
if ls .wheels/peers/*.whl >/dev/null 2>&1; then # apart: transformers would take its kernels
	$python -m pip install -q --no-index --no-deps --no-compile --upgrade --target build/peers .wheels/peers/*.whl
	peers=":$root/build/peers"
fi
export PYTHONPATH="$root/build/carried:$root/indexer:$root/inference:$root/kernels:$root"

part() {
	name=$1 seconds=$2
	shift 2
	echo "== $name" | tee -a "$out/log"
	timeout "$seconds" "$@" >"$out/$name.txt" 2>&1
	echo "ended with $?" >>"$out/log"
	tail -n 40 "$out/$name.txt"
}

part kernels 90 env PYTHONPATH="$PYTHONPATH$peers" $python -m benchmarks.gpu_kernels --json "$out/kernels.json"
part bench 200 $python -m qcn_inference.bench --synthetic qwen3-coder-next-fp8 \
	--lengths 8192 131072 260000
part tune 90 $python -m qcn_kernels.moe.tune
part tests 220 make gpu PYTHON="$python" GPU_WORKERS=4
