"""Who is measured, and the processes they run in."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.checkpoints import CACHE, ROOT
from benchmarks.peers import NODE_MODULES, gguf

Precision = Literal["bf16", "fp32"]
_TORCH_NAMES = {"bf16": "bfloat16", "fp32": "float32"}
_GGUF_NAMES = {"bf16": "bf16", "fp32": "f32"}


# glibc gives large blocks back to the system when they are freed and takes new ones for the next
# tensor: page faults, a third of a prefill of a small model. These have it keep them.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


@dataclass(frozen=True)
class Contender:
    """A runtime in one precision and, where it has any, one variant."""

    runtime: Literal["ours", "transformers", "llama.cpp"]
    precision: Precision
    variant: str = ""
    keeps_memory: bool = False  # whether it is started with `KEEP_FREED_MEMORY`

    @property
    def name(self) -> str:
        """Its name in reports."""
        memory = "keeping memory" if self.keeps_memory else ""
        return " ".join(
            part for part in (self.runtime, self.precision, self.variant, memory) if part
        )

    @property
    def worker(self) -> tuple[str, ...]:
        """Variants share a worker."""
        return self.runtime, self.precision, "keeping" if self.keeps_memory else "as-is"


REFERENCE = Contender("transformers", "fp32", "grouped_mm")
CONTENDERS = (
    REFERENCE,
    Contender("ours", "bf16"),
    Contender("transformers", "bf16", "grouped_mm"),
    Contender("llama.cpp", "bf16"),
    Contender("transformers", "fp32", "eager"),
    Contender("ours", "fp32"),
    Contender("transformers", "bf16", "eager"),
    Contender("llama.cpp", "fp32"),
    Contender("transformers", "fp32", "batched_mm"),
    Contender("transformers", "bf16", "batched_mm"),
    Contender("transformers", "bf16", "grouped_mm", keeps_memory=True),
)


class WorkerError(Exception):
    """A worker ended or was too slow; the message holds its last words."""


class Worker:
    """A running worker; use as a context manager."""

    def __init__(self, contender: Contender, folder: Path, threads: int) -> None:
        """Start it and wait until its model is loaded; raises `WorkerError`, `PeerError`."""
        command = _command(contender, folder, threads)
        CACHE.mkdir(parents=True, exist_ok=True)
        self._log = CACHE / f"worker-{'-'.join(contender.worker)}.log"
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        if contender.keeps_memory:
            environment |= KEEP_FREED_MEMORY
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.about = self._answer(seconds=180)

    def measure(
        self,
        prompt: list[int],
        *,
        steps: int,
        forced: list[int] | None,
        variant: str,
        seconds: float,
    ) -> dict[str, Any]:
        """One prefill and `steps` decoded tokens; `loop.py` names what comes back."""
        request = {"prompt": prompt, "steps": steps, "forced": forced, "variant": variant}
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except OSError as error:
            raise WorkerError(self._last_words()) from error
        return self._answer(seconds)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        limit = threading.Timer(seconds, self._process.kill)
        limit.start()
        line = self._process.stdout.readline()
        limit.cancel()
        if not line:
            self._process.wait()
            late = limit.finished.is_set() and self._process.returncode == -9
            raise WorkerError(f"no answer in {seconds:g} s" if late else self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        words = self._log.read_text(errors="replace").strip().splitlines()[-3:]
        return "it ended: " + (" ".join(words) or "no reason given")


def _command(contender: Contender, folder: Path, threads: int) -> list[str]:
    if contender.runtime == "llama.cpp":
        model = gguf(folder, _GGUF_NAMES[contender.precision])
        script = Path(__file__).parent / "workers" / "llama.mjs"
        node = shutil.which("node") or "node"
        return [node, str(script), str(NODE_MODULES), str(model), str(threads)]
    module = {"ours": "ours", "transformers": "transformers_peer"}[contender.runtime]
    dtype = _TORCH_NAMES[contender.precision]
    return [sys.executable, "-m", f"benchmarks.workers.{module}", str(folder), dtype, str(threads)]
