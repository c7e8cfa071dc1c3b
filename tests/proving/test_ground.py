"""Which sandbox is taken: one that withstands the attacks on this machine, or none."""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import platformdirs
import pytest
from proving_support import needs_bubblewrap, write

from qcn_lsp.proving import Limits, ProvingError, ProvingGround
from qcn_lsp.proving.attacks import ATTACKS
from qcn_lsp.proving.bubblewrap import Bubblewrap
from qcn_lsp.proving.containers import ContainerEngine
from qcn_lsp.proving.room import Room

# A container engine that has everything but containers: the copy is a folder of the machine, and
# the launcher stays who the server is, so that what is planted is within its reach.
POROUS = """#!{python}
import json, os, shutil, sys
with open({record!r}, "a") as record:
    record.write(" ".join(sys.argv[1:3]) + "\\n")
if sys.argv[1] == "version":
    print("99.1")
elif sys.argv[1] == "import":
    sys.stdin.buffer.read()
else:
    shutil.rmtree({copy!r}, ignore_errors=True)
    os.mkdir({copy!r})
    *launcher, room = sys.argv[sys.argv.index("localhost/qcn-proving:empty") + 1 :]
    own = {{"uid": None, "root": {copy!r}}}
    os.execv(launcher[0], [*launcher, json.dumps(json.loads(room) | own)])
"""
ABSENT = ContainerEngine("docker", path="/nonexistent")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return platformdirs.user_cache_path("qcn", appauthor=False) / "proving.json"


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record"


@pytest.fixture
def porous(tmp_path: Path, record: Path) -> ContainerEngine:
    copy = str(tmp_path / "copy")
    script = POROUS.format(python=sys.executable, record=str(record), copy=copy)
    client = write(tmp_path / "bin", {"docker": script}) / "docker"
    client.chmod(0o755)
    return ContainerEngine("docker", path=f"{client.parent}:/usr/bin:/bin")


async def refused(ground: ProvingGround, root: Path) -> str:
    with pytest.raises(ProvingError) as problem:
        async with ground.deploy(root, {}):
            pass
    return str(problem.value)


async def test_switched_off_nothing_runs_and_it_says_why(tmp_path: Path) -> None:
    ground = await ProvingGround.find("off")
    assert not ground.holds
    assert "qcn.security.sandbox is off" in await refused(ground, tmp_path)


async def test_where_no_sandbox_is_known_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    ground = await ProvingGround.find()
    assert not ground.holds
    assert "no sandbox is known to hold on this system" in await refused(ground, tmp_path)


async def test_where_none_is_installed_it_says_what_is_missing(tmp_path: Path) -> None:
    ground = await ProvingGround.find(builders=[ABSENT])
    assert not ground.holds
    assert "Docker is not installed" in await refused(ground, tmp_path)


async def test_a_container_engine_that_does_not_hold_runs_nothing(
    porous: ContainerEngine, tmp_path: Path
) -> None:
    ground = await ProvingGround.find(builders=[porous])
    assert not ground.holds
    reason = await refused(ground, tmp_path)
    for attack in ("read home", "write outside", "connect", "end process", "stay"):
        assert attack in reason


@needs_bubblewrap
async def test_the_first_that_holds_is_taken(porous: ContainerEngine) -> None:
    ground = await ProvingGround.find(builders=[ABSENT, porous, Bubblewrap()])
    assert ground.holds
    assert ground.backend == "bubblewrap"
    assert f"holds against all {len(ATTACKS)} attacks" in ground.reason


@needs_bubblewrap
async def test_a_setting_that_names_one_leaves_no_other(porous: ContainerEngine) -> None:
    ground = await ProvingGround.find("docker", builders=[porous, Bubblewrap()])
    assert not ground.holds


def test_a_container_is_asked_for_with_every_limit(tmp_path: Path) -> None:
    """What a real engine makes of it is for the attacks to say, on a machine that has one."""
    room = Room(tmp_path, limits=Limits(memory_mib=100, disk_mib=20, processes=7), uid=60600)
    command = ContainerEngine("docker").command(room, ["launcher"], lambda _: -1)
    assert command[1] == "run"
    assert command[-2:] == ["localhost/qcn-proving:empty", "launcher"]
    wanted = {
        "--network=none",
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--user=60600:60600",
        "--memory=120m",
        "--memory-swap=120m",
        "--pids-limit=7",
        "--pull=never",
        "--volume=/usr:/usr:ro",
    }
    assert wanted <= set(command)
    assert any(word.startswith(f"--tmpfs={tmp_path}:") for word in command)
    assert not [word for word in command if word.startswith("--volume") and word[-3:] != ":ro"]


async def test_an_engine_that_does_not_answer_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {"podman": "#!/bin/sh\nexit 125\n"}
    (write(tmp_path / "bin", script) / "podman").chmod(0o755)
    engine = ContainerEngine("podman", path=f"{tmp_path}/bin:/usr/bin:/bin")
    ground = await ProvingGround.find(builders=[engine])
    assert "its engine does not answer" in ground.reason


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def kept_for_another_version(cache: Path) -> str:
    known = json.loads(cache.read_text())
    known["docker"]["of"][0] = "98.0"
    known["docker"]["results"] = {attack.name: "held" for attack in ATTACKS}
    return json.dumps(known)


def runs(record: Path) -> int:
    return sum(line.startswith("run ") for line in record.read_text().splitlines())


async def test_a_verdict_is_kept_for_an_hour_readable_by_its_user_alone(
    porous: ContainerEngine, record: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ProvingGround.find(builders=[porous])
    again = await ProvingGround.find(builders=[porous])
    assert not again.holds
    assert runs(record) == 1
    assert mode(cache) == 0o600
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    await ProvingGround.find(builders=[porous])
    assert runs(record) == 2


@pytest.mark.parametrize(
    "spoilt",
    [
        "[]",
        "{",
        '{"docker": 5}',
        "[" * 100_000,
        pytest.param(None, id="all held, as another version's"),
    ],
)
async def test_a_verdict_that_is_damaged_or_anothers_is_none(
    porous: ContainerEngine, record: Path, cache: Path, spoilt: str | None
) -> None:
    await ProvingGround.find(builders=[porous])
    write(cache.parent, {cache.name: spoilt or kept_for_another_version(cache)})
    assert not (await ProvingGround.find(builders=[porous])).holds
    assert runs(record) == 2


async def test_where_no_verdict_can_be_kept_it_is_found_anew(
    porous: ContainerEngine, record: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no folder")
    for _ in range(2):
        assert not (await ProvingGround.find(builders=[porous])).holds
    assert runs(record) == 2


async def test_where_nothing_can_be_planted_to_be_attacked_it_says_why(
    porous: ContainerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    ground = await ProvingGround.find(builders=[porous])
    assert not ground.holds
    assert "docker is of no use here: [Errno 2] No such file or directory" in ground.reason


@needs_bubblewrap
async def test_grounds_may_be_looked_for_side_by_side() -> None:
    grounds = await asyncio.gather(*(ProvingGround.find("bubblewrap") for _ in range(3)))
    assert all(ground.holds for ground in grounds)
