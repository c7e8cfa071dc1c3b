"""Every attack gets through where nothing stops it, fails in the sandbox, and gets through again
when the wall that stops it is taken away."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from proving_support import needs_bubblewrap

from qcn_lsp.proving.attacks import ATTACKS, Attack, Result, assail, attempt_command, planted, said
from qcn_lsp.proving.bubblewrap import Bubblewrap
from qcn_lsp.proving.outcomes import ProvingError
from qcn_lsp.proving.room import ALL_WALLS, Wall

pytestmark = needs_bubblewrap

WITHOUT_A_TERMINAL = [attack for attack in ATTACKS if attack.wall is not Wall.SESSION]
SHORT = {"hold_seconds": 0.2}
SUPERUSER = os.geteuid() == 0
# What an ordinary user cannot do anywhere, and so cannot be let do it.
NEEDS_RIGHTS = {"open_raw_socket"}
# What the namespace of users stops as well, which an ordinary user's bubblewrap cannot do without.
STOPPED_TWICE = NEEDS_RIGHTS | {"read_others_environment", "trace_process"}


def by_name(attack: Attack) -> str:
    return attack.name


def control(attack: Attack) -> Result:
    """Make an attempt in no sandbox at all; what it goes for is planted."""
    with planted(None) as fixtures:
        own_place = {"writable": [fixtures.targets["scratch"]]}
        command = attempt_command([attack.name], fixtures.targets | SHORT | own_place)
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            env={"PLANTED": fixtures.targets["secret"]},
            stdin=subprocess.DEVNULL,
        )
        told = said(done.stdout)
        return (told | fixtures.seen(told))[attack.name]


@pytest.mark.parametrize("attack", WITHOUT_A_TERMINAL, ids=by_name)
def test_where_nothing_stops_it_an_attack_gets_through(attack: Attack) -> None:
    if attack.name in NEEDS_RIGHTS and not SUPERUSER:
        pytest.skip("an ordinary user has no right to it anyway")
    assert control(attack) is Result.SUCCEEDED


async def test_in_the_sandbox_every_attack_fails() -> None:
    results = await assail(Bubblewrap())
    assert results == {attack.name: Result.HELD for attack in ATTACKS}


@pytest.mark.parametrize("attack", WITHOUT_A_TERMINAL, ids=by_name)
async def test_without_the_wall_that_stops_it_an_attack_gets_through_again(attack: Attack) -> None:
    if attack.name in STOPPED_TWICE and not SUPERUSER:
        pytest.skip("an ordinary user's namespace stops it too")
    results = await assail(Bubblewrap(), [attack], ALL_WALLS - {attack.wall}, **SHORT)
    assert results[attack.name] is Result.SUCCEEDED


def test_there_is_an_attack_for_every_wall() -> None:
    assert {attack.wall for attack in ATTACKS} == ALL_WALLS


IN_A_TERMINAL = """
import asyncio, json, os, subprocess, sys
from qcn_lsp.proving.attacks import ATTACKS, assail, attempt_command, planted, said
from qcn_lsp.proving.bubblewrap import Bubblewrap
from qcn_lsp.proving.room import ALL_WALLS, Wall

[attack] = [attack for attack in ATTACKS if attack.wall is Wall.SESSION]
control = subprocess.run(attempt_command([attack.name], {}), stdout=subprocess.PIPE)
inside = asyncio.run(assail(Bubblewrap(), [attack]))
again = asyncio.run(assail(Bubblewrap(), [attack], ALL_WALLS - {Wall.SESSION}))
results = [*(said(control.stdout).values()), *inside.values(), *again.values()]
open(sys.argv[1], "w").write(json.dumps(results))
"""


def test_nothing_in_the_sandbox_reaches_the_terminal_that_the_server_was_started_from(
    tmp_path: Path,
) -> None:
    answer = tmp_path / "results"
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", IN_A_TERMINAL, str(answer)])
    screen = b""
    try:
        while block := os.read(terminal, 1024):
            screen += block
    except OSError:  # the terminal's last process has ended
        pass
    os.waitpid(child, 0)
    os.close(terminal)
    assert answer.exists(), screen.decode(errors="replace")
    assert json.loads(answer.read_text()) == ["succeeded", "held", "succeeded"]


async def test_an_attack_that_was_not_made_does_not_count_as_held() -> None:
    [attack] = [attack for attack in ATTACKS if attack.name == "read_home"]
    unknown = Attack("no_such_attempt", Wall.ROOT)
    results = await assail(Bubblewrap(), [unknown, attack])
    assert results["no_such_attempt"] is Result.UNPROVEN


async def test_where_the_command_of_the_sandbox_fails_it_says_why() -> None:
    class Broken:
        name = "broken"
        absent = ""

        async def version(self) -> str | None:
            return "1"

        def environment(self) -> dict[str, str]:
            return {}

        def command(self, *_: object) -> list[str]:
            return ["/bin/sh", "-c", "echo no namespaces here >&2; exit 1"]

    with pytest.raises(ProvingError, match="no namespaces here"):
        await assail(Broken())


def test_as_an_ordinary_user_every_attack_fails_as_well(tmp_path: Path) -> None:
    """Bubblewrap builds another sandbox for the superuser than for others: both must hold."""
    system = Path("/usr/bin/python3")
    if not SUPERUSER or not system.exists():
        pytest.skip("only the superuser can become another user, and needs a Python that both see")
    code = (
        "import asyncio, json\n"
        "from qcn_lsp.proving.attacks import assail\n"
        "from qcn_lsp.proving.bubblewrap import Bubblewrap\n"
        "print(json.dumps(asyncio.run(assail(Bubblewrap()))))"
    )
    paths = [path for path in sys.path if path and os.access(path, os.R_OK)]
    done = subprocess.run(
        [str(system), "-c", code],
        env={"PYTHONPATH": ":".join(paths), "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"},
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
    )
    if "ModuleNotFoundError" in done.stderr or "Permission" in done.stderr:
        pytest.skip("this checkout, or its packages, cannot be read by another user")
    assert json.loads(done.stdout) == {attack.name: "held" for attack in ATTACKS}, done.stderr
