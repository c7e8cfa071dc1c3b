"""Which open files the model sees beside the current one."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexer.tree_support import git, own_git_home, write
from qcn_indexer.open_files import OpenFile, Selection, choose, root_of, withheld
from qcn_indexer.secrets import looks_secret
from sampling import examples

ROOT = Path("/work space/app")
OTHER = Path("/work space/lib")
ROOTS = (ROOT, OTHER, ROOT / "vendor")


def chosen(*files: tuple[str, str], budget: int = 1000) -> Selection:
    opened = [OpenFile(ROOT / path, text) for path, text in files]
    return choose(opened, root=ROOT, roots=ROOTS, ruled_out=nothing_is, budget=budget)


def nothing_is(_path: PurePosixPath) -> None:
    """No rules."""


def test_files_keep_their_order_and_are_named_from_their_root() -> None:
    shown = chosen(("b.py", "b = 1"), ("pkg/a.py", "a = 1")).shown
    assert [str(file.path) for file in shown] == ["b.py", "pkg/a.py"]
    assert [file.text for file in shown] == ["b = 1", "a = 1"]


def test_the_files_used_last_get_the_budget_and_none_is_cut() -> None:
    selection = chosen(
        ("old.py", "x" * 60), ("big.py", "x" * 200), ("new.py", "x" * 60), budget=130
    )
    assert [(file.path.name, len(file.text)) for file in selection.shown] == [
        ("old.py", 60),
        ("new.py", 60),
    ]
    assert selection.left_out == (
        (ROOT / "big.py", "it is longer than what is left of the budget (70 characters)"),
    )


def test_typing_elsewhere_leaves_what_is_shown_as_it_is() -> None:
    """The current file moves to the end of the list; the others must not move with it."""
    before = chosen(("a.py", "a"), ("b.py", "b"))
    assert chosen(("a.py", "a"), ("b.py", "b")) == before


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (OTHER / "a.py", "another workspace folder"),
        (ROOT / "vendor" / "a.py", "another workspace folder"),
        (Path("/elsewhere/a.py"), "another workspace folder"),
        (ROOT / ".env", "a usual name for secrets"),
        (ROOT / ".ssh" / "config", "a usual folder for secrets"),
    ],
)
def test_a_file_that_is_left_out_has_its_reason(path: Path, why: str) -> None:
    selection = choose([OpenFile(path, "x = 1")], root=ROOT, roots=ROOTS, ruled_out=nothing_is)
    assert selection.shown == ()
    ((left_out, reason),) = selection.left_out
    assert left_out == path
    assert why in reason


@pytest.mark.parametrize(
    ("text", "why"), [("", "empty"), (" \n", "empty"), ("PK\0\1", "binary"), ("x" * 99, "longer")]
)
def test_a_text_that_is_of_no_use_is_left_out(text: str, why: str) -> None:
    ((_, reason),) = chosen(("a.py", text), budget=50).left_out
    assert why in reason


def test_a_file_belongs_to_its_innermost_root() -> None:
    assert root_of(ROOT / "vendor" / "a.py", ROOTS) == ROOT / "vendor"
    assert root_of(ROOT / "a.py", ROOTS) == ROOT
    assert root_of(Path("/work space/application/a.py"), ROOTS) is None


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own_git_home(tmp_path / "home", monkeypatch)
    files = {".gitignore": "build.log\nout/\n", "build.log": "x", "out/a.py": "x", "a.py": "x"}
    root = write(tmp_path / "repo", {**files, "empty.py": "", "logo.png": "x"})
    git(root, "init", "--quiet")
    return root


@pytest.mark.parametrize("path", ["a.py", "empty.py", "new.py", "new/folder/b.py"])
def test_what_no_rule_names_may_be_shown_saved_or_not(repo: Path, path: str) -> None:
    assert withheld(repo, PurePosixPath(path)) is None


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("build.log", "ignored by .gitignore, line 1"),
        ("out/a.py", "ignored by .gitignore, line 2"),
        ("logo.png", "binary"),
    ],
)
def test_the_rules_hold_for_open_files_saved_or_not(repo: Path, path: str, why: str) -> None:
    assert why in (withheld(repo, PurePosixPath(path)) or "")
    (repo / path).unlink()
    assert why in (withheld(repo, PurePosixPath(path)) or "")


def test_what_the_rules_name_is_left_out(repo: Path) -> None:
    opened = [OpenFile(repo / path, "x = 1") for path in ("build.log", "a.py")]
    selection = choose(opened, root=repo, roots=[repo], ruled_out=lambda path: withheld(repo, path))
    assert [str(file.path) for file in selection.shown] == ["a.py"]
    assert selection.left_out == ((repo / "build.log", "ignored by .gitignore, line 1"),)


SECRET = [
    ".env", ".env.local", ".ENV", ".env.production.local", "prod.env", ".envrc", "SERVER.PEM",
    "tls/server.key", "id_rsa", "id_ed25519.pub", ".netrc", ".npmrc", ".pypirc", "keys.p12",
    "release.keystore", "server.pem", "terraform.tfstate", "prod.tfvars", ".aws/credentials",
    ".kube/config", "home/.ssh/known_hosts", "config/secrets.yml", "credentials.json",
    ".git-credentials",
]  # fmt: skip
PUBLIC = [
    "env.py", "environment.ts", "keyboard.py", "key.go", "credentials.py", "secrets.py",
    "pem.c", "docs/env.md", "docker/Dockerfile", "ssh/client.rs", ".github/workflows/ci.yml",
]  # fmt: skip


@pytest.mark.parametrize("path", SECRET)
def test_usual_places_of_secrets_are_known(path: str) -> None:
    assert looks_secret(PurePosixPath(path), "x = 1")


@pytest.mark.parametrize("path", PUBLIC)
def test_code_about_secrets_is_no_secret(path: str) -> None:
    assert looks_secret(PurePosixPath(path), "x = 1") is None


@pytest.mark.parametrize("kind", ["", "RSA ", "OPENSSH ", "EC ", "ENCRYPTED "])
def test_a_private_key_is_known_by_its_text(kind: str) -> None:
    text = f"deploy = '''\n-----BEGIN {kind}PRIVATE KEY-----\nMIIE\n'''"
    assert looks_secret(PurePosixPath("deploy.py"), text) == "it holds a private key"


paths = st.sampled_from(["a.py", "b/c.py", ".env", "vendor/d.py", "../lib/e.py", "k.pem"])
files = st.lists(st.tuples(paths, st.text(max_size=40)), max_size=8)


@pytest.mark.long
@examples(sample=200, full=1000)
@given(files=files, budget=st.integers(0, 120))
def test_every_file_is_shown_whole_or_named_with_a_reason(
    files: list[tuple[str, str]], budget: int
) -> None:
    opened = [OpenFile(ROOT.joinpath(path), text) for path, text in files]
    selection = choose(opened, root=ROOT, roots=ROOTS, ruled_out=nothing_is, budget=budget)
    assert sum(len(file.text) for file in selection.shown) <= budget
    assert len(selection.shown) + len(selection.left_out) == len(opened)
    given_texts = iter(opened)  # what is shown is a subsequence of what was given
    for shown in selection.shown:
        assert any(
            ROOT / shown.path == file.path and shown.text == file.text for file in given_texts
        )
        assert "\0" not in shown.text
        assert looks_secret(shown.path, shown.text) is None
