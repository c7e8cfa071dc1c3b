"""Layouts for `/v1/contexts/{id}`, as a client sends them."""

import hashlib
from typing import Any

from engine_support import EngineClient

Entry = tuple[str, str, str]  # path, text, zone
Layout = list[Entry]


def segment_hash(path: str, text: str) -> str:
    return hashlib.sha256(f"{path}\0{text}".encode()).hexdigest()


def body_of(layout: Layout, *, texts: bool = True, hot: bool = False) -> dict[str, Any]:
    segments: list[dict[str, Any]] = [
        {"hash": segment_hash(path, text), "path": path, "zone": zone, "hot": hot}
        | ({"text": text} if texts else {})
        for path, text, zone in layout
    ]
    return {"repo": "shop", "segments": segments}


def put(engine: EngineClient, name: str, layout: Layout, **how: bool) -> dict[str, Any]:
    answer = engine.client.put(f"/v1/contexts/{name}", json=body_of(layout, **how))
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]  # any JSON


def view(engine: EngineClient, name: str) -> dict[str, Any]:
    answer = engine.client.get(f"/v1/contexts/{name}")
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]  # any JSON


def source(words: int, seed: int) -> str:
    return "".join(f"v{seed}_{n} = {n * seed}\n" for n in range(words))


BASE: Layout = [(f"{n}.py", source(8, n), "base") for n in range(3)]
