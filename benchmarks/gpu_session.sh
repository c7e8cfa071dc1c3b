#!/bin/sh
# All that a GPU shows in nine minutes, most wanted first; see README.md.
# Usage: gpu_session.sh OUT [PART ...]
# A part that fails or takes too long is told in OUT/log, and the next begins.
out=$1
shift
parts=${*:-tests card waits bench kernels lookup tune}
mkdir -p "$out"
python=${PYTHON:-python3}
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
out=$(CDPATH= cd -- "$out" && pwd)
cd "$root" || exit 1
deadline=$(($(date +%s) + ${SECONDS_IN_ALL:-540}))
if ls .wheels/*.whl >/dev/null 2>&1; then
	$python -m pip install -q --no-index --no-deps --no-compile --upgrade --target build/carried .wheels/*.whl
fi
peers=
if ls .wheels/peers/*.whl >/dev/null 2>&1; then # apart: transformers would take its kernels
	$python -m pip install -q --no-index --no-deps --no-compile --upgrade --target build/peers .wheels/peers/*.whl
	peers=":$root/build/peers"
fi
export PYTHONPATH="$root/build/carried:$root/indexer:$root/inference:$root/kernels:$root"
{ nvidia-smi; git rev-parse HEAD; } >>"$out/log" 2>&1

# Its FP8 weights take 80 GB: where they do not fit beside what is read, those of 4 bits, 49 GB.
mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -n 1)
model=${MODEL:-qwen3-coder-next-fp8}
if [ -z "$MODEL" ] && [ "${mib:-0}" -lt 100000 ]; then
	model=qwen3-coder-next-int4
fi
texts=.wheels/rewrites.json
if [ ! -f $texts ]; then
	texts=build/rewrites.json
fi

# What a part prints goes to OUT/NAME.out, what it complains of to OUT/log.
part() {
	name=$1 seconds=$2
	shift 2
	left=$((deadline - $(date +%s)))
	[ "$left" -gt "$seconds" ] || seconds=$left
	if [ "$seconds" -lt 1 ]; then
		echo "== $name: no time is left" | tee -a "$out/log"
		return
	fi
	echo "== $name, $seconds s at most" | tee -a "$out/log"
	# An interrupt: pytest tells then what has failed so far.
	timeout -s INT -k 15 "$seconds" "$@" >"$out/$name.out" 2>>"$out/log"
	echo "$name ended with $?, $((deadline - $(date +%s))) s are left" | tee -a "$out/log"
	tail -n 3 "$out/$name.out"
}

bench="$python -m qcn_inference.bench --synthetic"
for wanted in $parts; do
	case $wanted in
	bench) part bench 150 $bench "$model" --lengths 8192 131072 260000 ;;
	kernels) part kernels 80 env PYTHONPATH="$PYTHONPATH$peers" $python -m benchmarks.gpu_kernels ;;
	waits) part waits 70 $bench "$model" --waits 131072 --tries 24 ;;
	# A card of 24,564 MiB, of which CUDA takes some 500 for itself. The short prompt first: if the
	# long one is cut off, something is known.
	card) part card 130 $bench qwen3-coder-next-int4 --device-memory-mib 24000 --lengths 8192 65536 ;;
	lookup)
		[ -f $texts ] || $python -m benchmarks.gpu_lookup write $texts 2>>"$out/log"
		part lookup 80 $python -m benchmarks.gpu_lookup measure $texts --synthetic "$model"
		;;
	tests) part tests 300 make gpu PYTHON="$python" GPU_WORKERS=12 ;;
	tune) part tune 100 $python -m qcn_kernels.moe.tune ;;
	*) echo "there is no part $wanted" >&2 && exit 1 ;;
	esac
done
