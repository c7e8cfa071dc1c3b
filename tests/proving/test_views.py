"""Views: what of a workspace is in the sandbox, what is run there, and what comes out."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from deadlines import DEADLINE_SECONDS
from proving_support import (
    needs_bubblewrap,
    proving_ground,
    sleeping,
    unlike_any_other,
    wait_until,
    write,
)

from qcn_lsp.proving import EndedBy, Limits, ProvingError, ProvingGround, TestSuite, View

pytestmark = needs_bubblewrap

PROJECT = {
    "app.py": "def double(x):\n    return x + x\n",
    "other.py": "def one():\n    return 1\n",
    "test_app.py": (
        "import unittest\n\nimport app\nimport other\n\n\n"
        "class Tests(unittest.TestCase):\n"
        "    def test_double(self):\n        self.assertEqual(app.double(2), 4)\n\n"
        "    def test_one(self):\n        self.assertEqual(other.one(), 1)\n\n"
        "    @unittest.skip('later')\n    def test_later(self):\n        pass\n"
    ),
    "test_other.py": (
        "import unittest\n\nimport other\n\n\n"
        "class Tests(unittest.TestCase):\n"
        "    def test_one(self):\n        self.assertEqual(other.one(), 1)\n"
    ),
    "deep/er/data.txt": "data\n",
    "empty/__init__.py": "",
}
UNITTEST = TestSuite("unittest")
SMALL = Limits(
    seconds=DEADLINE_SECONDS, memory_mib=128, disk_mib=32, file_mib=16, output_bytes=1 << 16
)


@pytest.fixture
async def ground() -> ProvingGround:
    return await proving_ground()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write(tmp_path / "project", PROJECT)


@pytest.fixture
async def view(ground: ProvingGround, project: Path) -> AsyncIterator[View]:
    async with ground.deploy(project, {}, SMALL) as view:
        yield view


def state(root: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


async def said(view: View, command: str) -> str:
    return (await view.run(["sh", "-c", command])).log


async def test_tests_pass_on_the_workspace_and_fail_on_a_candidate_that_breaks_them(
    ground: ProvingGround, project: Path
) -> None:
    before = state(project)
    async with ground.deploy(project, {}) as view:
        baseline = await view.run_tests(UNITTEST)
    async with ground.deploy(project, {"app.py": "def double(x):\n    return x\n"}) as view:
        broken = await view.run_tests(UNITTEST)
    assert baseline.succeeded
    assert baseline.passed == {
        "test_app.Tests.test_double",
        "test_app.Tests.test_one",
        "test_other.Tests.test_one",
    }
    assert baseline.skipped == {"test_app.Tests.test_later"}
    assert not broken.succeeded
    assert broken.failed == {"test_app.Tests.test_double"}
    assert "AssertionError: 2 != 4" in broken.run.log
    assert state(project) == before


async def test_it_says_which_tests_touch_a_change_and_how_it_knows(view: View) -> None:
    outcome = await view.run_tests(UNITTEST, changed={"app.py": {2}})
    assert outcome.touching_by == "imports"
    touching = {"test_app.Tests.test_double", "test_app.Tests.test_one"}
    assert outcome.touching == frozenset(touching)


async def test_a_test_of_ones_own_is_put_beside_the_project_and_run_alone(view: View) -> None:
    await view.write(
        "test_exploit.py",
        "import unittest, app\n\n\nclass Exploit(unittest.TestCase):\n"
        "    def test_it(self):\n        self.assertNotEqual(app.double(2), 4)\n",
    )
    outcome = await view.run_tests(TestSuite("unittest", ("test_exploit.py",)))
    assert outcome.failed == {"test_exploit.Exploit.test_it"}
    assert outcome.passed == set()


async def test_everything_is_there_but_what_is_ignored_or_secret(
    ground: ProvingGround, project: Path
) -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEAx3q0Zz" * 20 + "\n"
    hidden = {
        ".gitignore": "ignored*\n",
        "ignored.txt": "x",
        "ignored/deep.txt": "x",
        ".env": "TOKEN=x",
        "deploy.pem": "x",
        "settings.txt": f"{key}-----END RSA PRIVATE KEY-----\n",
        ".git/config": "[core]\n",
    }
    write(project, hidden)
    (project / "utf-16.txt").write_text(f"{key}-----END RSA PRIVATE KEY-----\n", encoding="utf-16")
    (project / "picture.bin").write_bytes(bytes(range(256)))
    (project / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (project / "run.sh").chmod(0o755)
    async with ground.deploy(project, {"run.sh": "#!/bin/sh\necho edited\n"}) as view:
        listed = (await said(view, "find . -type f | sort")).split()
        assert await said(view, "./run.sh") == "edited\n"
        assert await said(view, "od -An -tu1 picture.bin | tail -1 | xargs") == (
            " ".join(map(str, range(240, 256))) + "\n"
        )
    there = {".gitignore", "picture.bin", "run.sh", *PROJECT}
    assert listed == sorted(f"./{name}" for name in there)


async def test_nothing_of_the_server_is_in_the_environment(view: View) -> None:
    names = {line.partition("=")[0] for line in (await said(view, "env")).splitlines()}
    assert names == {"PATH", "HOME", "TMPDIR", "LANG", "PYTHONDONTWRITEBYTECODE", "CI", "PWD"}


async def test_a_program_that_the_workspace_plants_is_run_inside_alone(
    ground: ProvingGround, project: Path
) -> None:
    """One named like a tool of ours, on the workspace's own path: no process here runs it."""
    trap = project.parent / "trap"
    for name in ("bwrap", "git", "python", "python3", "docker", "podman", "ruff"):
        for folder in (project, project / ".venv" / "bin"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"#!/bin/sh\necho trapped > {trap}\necho planted\n")
            (folder / name).chmod(0o755)
    (project / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    async with ground.deploy(project, {}) as view:
        outcome = await view.run_tests(UNITTEST)
    assert outcome.run.log.endswith("planted\n"), (
        "the project's own interpreter ran, in the sandbox"
    )
    assert outcome.passed == set()
    assert not outcome.succeeded
    assert not trap.exists()


async def test_a_virtual_environment_cannot_show_the_users_folders(
    ground: ProvingGround, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = write(tmp_path / "home", {"key/secret": "s", "key/bin/python3": "", "bin/python3": ""})
    write(home, {"lib/python3.11/os.py": ""})
    monkeypatch.setenv("HOME", str(home))
    for claimed in (home / "key" / "bin", home / "bin", project / "bin"):
        write(project, {".venv/pyvenv.cfg": f"home = {claimed}\n"})
        async with ground.deploy(project, {}) as view:
            assert "No such file" in await said(view, f"ls {home}/key {home}/lib")


async def test_the_virtual_environment_is_there_and_cannot_be_written_to(
    ground: ProvingGround, project: Path
) -> None:
    write(project, {".venv/pyvenv.cfg": "home = /usr/bin\n", ".venv/lib/x.txt": "kept"})
    write(project, {"node_modules/left/index.js": "kept"})
    async with ground.deploy(project, {}) as view:
        for path in (".venv/lib/x.txt", "node_modules/left/index.js"):
            assert await said(view, f"cat {path}") == "kept"
            assert "Read-only file system" in await said(view, f"echo spoilt > {path}")
        assert await view.changes() == ()


async def test_changes_are_told_as_files_are_changed_made_and_deleted(view: View) -> None:
    await said(view, "echo new > made.txt; echo '#' >> app.py; rm other.py; touch test_app.py")
    await said(view, "ln -s /etc/passwd link; mkfifo pipe; printf '\\377' > binary; mkdir void")
    await said(view, "echo odd > 'back\\slash'")
    changes = {change.path: (change.after, change.deleted) for change in await view.changes()}
    assert changes == {
        "app.py": (PROJECT["app.py"] + "#\n", False),
        "back\\slash": ("odd\n", False),
        "binary": (None, False),
        "link": (None, False),
        "made.txt": ("new\n", False),
        "other.py": (None, True),
        "pipe": (None, False),
    }


async def test_more_changes_than_can_be_told_are_refused(view: View) -> None:
    await said(view, "seq -f many%g 3000 | xargs touch")
    with pytest.raises(ProvingError, match="More files than can be told"):
        await view.changes()


async def test_what_one_command_starts_is_gone_before_the_next(view: View) -> None:
    started = await view.run(["sh", "-c", "setsid sleep 600 & sleep 600 & echo started"])
    assert started.log == "started\n"
    running = await said(view, "cat /proc/[0-9]*/comm")
    assert "sleep" not in running


async def test_a_command_that_hangs_is_ended_with_all_it_started(view: View) -> None:
    run = await view.run(["sh", "-c", "trap '' TERM; sleep 600 & wait"], seconds=0.5)
    assert (run.ended_by, run.succeeded) == (EndedBy.TIME, False)
    assert (await view.run(["true"])).succeeded, "the view is of use afterwards"


async def test_a_suite_that_eats_memory_is_ended(ground: ProvingGround, project: Path) -> None:
    write(project, {"test_big.py": "held = [b'x' * (1 << 20) for _ in range(10_000)]\n"})
    async with ground.deploy(project, {}, SMALL) as view:
        outcome = await view.run_tests(TestSuite("unittest", ("test_big.py",)))
        assert not outcome.succeeded
        assert outcome.run.ended_by is EndedBy.MEMORY or "MemoryError" in outcome.run.log
        assert (await view.run(["true"])).succeeded


async def test_of_output_without_end_the_beginning_and_the_end_are_kept(view: View) -> None:
    command = "echo first; head -c 300M /dev/zero | tr '\\0' 'a'; echo; echo last"
    run = await view.run(["sh", "-c", command])
    assert run.succeeded
    assert run.log.startswith("first\naaa")
    assert run.log.endswith("aaa\nlast\n")
    assert "bytes left out]" in run.log
    assert len(run.log) <= SMALL.output_bytes + 64


async def test_a_log_does_nothing_to_who_shows_it(view: View) -> None:
    attack = r"a\033[2Jb\033]0;title\007c\r\nd\010\000e\302\233x\342\200\256f\342\200\213g\377"
    assert (await view.run(["printf", attack])).log == "abc\nde\x66g�"


async def test_where_there_is_no_such_command_the_log_says_so(view: View) -> None:
    run = await view.run(["no-such-command"])
    assert run.exit_code == 127
    assert run.log == "no-such-command: No such file or directory\n"


async def test_when_a_view_ends_every_process_and_file_of_it_is_gone(
    ground: ProvingGround, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before, mark = state(project), unlike_any_other()
    async with ground.deploy(project, {}) as view:
        await view.write("made.txt", "x")
        await view.run(["sh", "-c", f"setsid sleep {mark} & true"])
    assert not sleeping(mark)
    assert list(temporary.iterdir()) == []
    assert state(project) == before


async def test_cancelling_ends_every_process(ground: ProvingGround, project: Path) -> None:
    mark = unlike_any_other()

    async def hang() -> None:
        async with ground.deploy(project, {}) as view:
            await view.run(["sh", "-c", f"setsid sleep {mark} & sleep {mark}"])

    task = asyncio.create_task(hang())
    await asyncio.to_thread(wait_until, lambda: sleeping(mark))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not sleeping(mark)


HANG = """
import asyncio, sys
from pathlib import Path
from qcn_lsp.proving import ProvingGround

async def main():
    ground = await ProvingGround.find("bubblewrap")
    async with ground.deploy(Path(sys.argv[1]), {}) as view:
        await view.run(["sh", "-c", f"setsid sleep {sys.argv[2]} & sleep {sys.argv[2]}"])

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_server_however_it_ends(
    project: Path, number: signal.Signals
) -> None:
    mark = unlike_any_other()
    server = subprocess.Popen(
        [sys.executable, "-c", HANG, str(project), mark], stderr=subprocess.DEVNULL
    )
    wait_until(lambda: sleeping(mark))
    server.send_signal(number)
    server.wait()
    wait_until(lambda: not sleeping(mark))


async def test_candidates_side_by_side_do_not_see_each_other(
    ground: ProvingGround, project: Path
) -> None:
    async def candidate(number: int) -> str:
        async with ground.deploy(project, {"app.py": str(number)}, SMALL) as view:
            await view.write("mine.txt", str(number))
            return await said(view, "cat app.py mine.txt")

    logs = await asyncio.gather(*map(candidate, range(5)))
    assert logs == [f"{number}{number}" for number in range(5)]


@pytest.mark.parametrize(
    "path",
    ["../up.py", "/etc/passwd", "deep/../../up.py", "", ".", "deep//er", "a\0b", "deep\\er.py"],
)
async def test_an_edit_that_leads_out_is_refused(
    ground: ProvingGround, project: Path, view: View, path: str
) -> None:
    with pytest.raises(ProvingError, match="no path below the workspace folder"):
        async with ground.deploy(project, {path: "x"}):
            pass
    with pytest.raises(ProvingError, match="no path below the workspace folder"):
        await view.write(path, "x")


async def test_an_edit_through_a_link_is_refused(ground: ProvingGround, project: Path) -> None:
    (project / "away").symlink_to(project.parent)
    (project / "alias.py").symlink_to("app.py")
    for path in ("away/up.py", "alias.py"):
        with pytest.raises(ProvingError, match="is a symbolic link"):
            async with ground.deploy(project, {path: "x"}):
                pass


@pytest.mark.parametrize(
    ("there", "edited"), [("app.py", "App.py"), ("n\u00e4me.py", "na\u0308me.py")]
)
async def test_an_edit_that_spells_a_files_name_otherwise_is_refused(
    ground: ProvingGround, project: Path, there: str, edited: str
) -> None:
    write(project, {there: "x = 1\n"})
    with pytest.raises(ProvingError, match="but the file is"):
        async with ground.deploy(project, {edited: "x"}):
            pass


async def test_links_pipes_and_names_of_any_bytes_are_taken_for_what_they_are(
    ground: ProvingGround, project: Path
) -> None:
    secret = write(project.parent, {"secret.txt": "secret"}) / "secret.txt"
    (project / "out").symlink_to(secret)
    (project / "in.txt").symlink_to("deep/er/data.txt")
    (project / "circle").symlink_to("circle")
    os.mkfifo(project / "pipe")
    write(project, {os.fsdecode(b"latin-\xe9.txt"): "odd", "two\nlines": "two"})
    async with ground.deploy(project, {}) as view:
        assert "No such file" in await said(view, "cat out")
        assert await said(view, "cat in.txt") == "data\n"
        assert await said(view, "test -e pipe || echo none") == "none\n"
        assert await said(view, "cat latin-* two*") == "oddtwo"


async def test_a_workspace_that_does_not_fit_is_refused(
    ground: ProvingGround, project: Path
) -> None:
    (project / "big").write_bytes(b"x" * (3 << 20))
    with pytest.raises(ProvingError, match="do not fit"):
        async with ground.deploy(project, {}, Limits(disk_mib=2)):
            pass


async def test_a_folder_that_is_gone_or_holds_everything_is_refused(
    ground: ProvingGround, tmp_path: Path
) -> None:
    with pytest.raises(ProvingError, match="There is no folder"):
        async with ground.deploy(tmp_path / "gone", {}):
            pass
    for root in (Path("/"), Path.home(), Path.home().parent, Path("/usr")):
        with pytest.raises(ProvingError, match="no folder of a project"):
            async with ground.deploy(root, {}):
                pass


async def test_a_full_disk_is_the_tests_failure_and_no_one_elses(
    ground: ProvingGround, project: Path
) -> None:
    async with ground.deploy(project, {}, SMALL) as view:
        log = await said(view, "for i in 1 2 3; do head -c 15M /dev/zero > fill$i; done")
        assert "No space left on device" in log
        assert await said(view, "rm fill*; echo x > y && cat y") == "x\n"


async def test_a_sandbox_that_was_killed_is_told(ground: ProvingGround, project: Path) -> None:
    others = set(psutil.Process().children(recursive=True))  # of other tests in this process
    async with ground.deploy(project, {}, SMALL) as view:
        for process in set(psutil.Process().children(recursive=True)) - others:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with pytest.raises(ProvingError, match="The sandbox is gone"):
            await view.run(["true"])
