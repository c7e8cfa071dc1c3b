"""`qcn context --open`: the page, its data, and who is refused."""

import html
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from deadlines import DEADLINE_SECONDS

from qcn_lsp.view.serving import ViewServer

PRICES = "def price(item):\n    return item.price\n" * 9


@pytest.fixture
def opened(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command, with a browser that says what it is given, and where this leads."""
    shop = tmp_path / "<b>shop"
    shop.mkdir()
    (shop / "prices.py").write_text(PRICES)
    (shop / ".env").write_text("PASSWORD=hunter2\n")
    monkeypatch.setenv("BROWSER", "echo browser opens %s")
    arguments = ["context", "--open", "--tokens", "6000", str(shop)]
    command = [sys.executable, "-m", "qcn_lsp.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = ""
    while "browser opens " not in said:
        said += process.stdout.readline() or pytest.fail(said)
    signpost = Path(urlsplit(said.split("browser opens ")[1].strip()).path)
    assert signpost.stat().st_mode & 0o777 == 0o600
    [address] = re.findall(r'href="([^"]+)"', signpost.read_text())
    yield process, html.unescape(address)
    process.kill()
    process.wait()
    process.stdout.close()
    assert not signpost.exists()


def test_it_shows_the_page_and_leaves_when_the_page_is_gone(
    opened: tuple["subprocess.Popen[str]", str],
) -> None:
    process, address = opened
    page = httpx.get(address)
    assert page.status_code == 200
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none';")
    for name in re.findall(r'(?:href|src)="([^"]+)"', page.text):
        assert httpx.get(httpx.URL(address).join(name)).status_code == 200
    data: dict[str, Any] = {"context": None}
    while data["context"] is None:  # laid out in the background
        answer = httpx.get(httpx.URL(address).join("data?skipped=1"), timeout=DEADLINE_SECONDS)
        data = answer.json()
    assert [one["path"] for one in data["context"]["segments"]] == ["prices.py"]
    assert data["skipped"][0]["examples"] == [".env"]
    assert data["state"]["roots"][0]["name"] == "<b>shop"
    assert "hunter2" not in answer.text
    assert httpx.post(httpx.URL(address).join("gone")).status_code == 204
    assert process.wait(DEADLINE_SECONDS) == 0


def test_interrupted_it_leaves(opened: tuple["subprocess.Popen[str]", str]) -> None:
    process, _ = opened
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_SECONDS) == 130


def test_strangers_are_refused() -> None:
    looked: list[bool] = []

    def look(with_skipped: bool) -> dict[str, Any]:
        looked.append(with_skipped)
        return {}

    server = ViewServer(look)
    thread = threading.Thread(target=server.serve_until_gone)
    thread.start()
    try:
        url = httpx.URL(server.address)
        assert url.host == "127.0.0.1"
        data = url.join("data")
        for refused in (
            httpx.get(data, headers={"Host": f"evil.example:{url.port}"}),
            httpx.get(data.copy_with(path="/" + "x" * len(server.token) + "/data")),
            httpx.get(data.copy_with(path="/data")),
            httpx.get(data.copy_with(path="/")),
            httpx.post(data.copy_with(path="/wrong/gone")),
        ):
            assert (refused.status_code, refused.text) == (403, "")
        assert httpx.get(url.join("../../etc/passwd")).status_code == 403
        assert httpx.get(url.join("serving.py")).status_code == 404
        assert looked == []
        assert httpx.get(data).json() == {}
        assert looked == [False]
    finally:
        server.heard(patience=0)
        thread.join()
