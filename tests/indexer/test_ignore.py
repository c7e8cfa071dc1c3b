"""What the user asked to be left out: as git says, and the private choice where git says nothing.

The judge is `git check-ignore`, which names the line that decides.
"""

import contextlib
import os
import tempfile
import warnings
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexer.tree_support import git, git_says, own_git_home, write
from qcn_indexer.ignore import MAX_BYTES, Ignore, ignore_at
from qcn_indexer.ignore_rules import Rules, UnreadableRulesError
from sampling import examples


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_git_home(tmp_path / "home", monkeypatch)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "--quiet")
    return root


def why_below(rules: Ignore, path: str) -> str | None:
    """Return why a path is ignored, going down to it folder by folder."""
    is_folder = (rules.folder / path).is_dir()
    *folders, name = PurePosixPath(path).parts
    for folder in folders:
        rules = rules.inside(folder)
    return rules.whole or rules.reason(name, is_folder=is_folder)


def why(root: Path, path: str) -> str | None:
    return why_below(ignore_at(root), path)


def everything_below(root: Path) -> list[str]:
    found = [path.relative_to(root) for path in root.rglob("*")]
    return [path.as_posix() for path in found if path.parts[0] != ".git"]


def assert_as_git(root: Path) -> None:
    paths = everything_below(root)
    rules = ignore_at(root)
    assert {path: why_below(rules, path) for path in paths} == git_says(root, paths)


def test_a_repository_with_rules_at_every_level(repo: Path, home: Path) -> None:
    write(home, {".config/git/ignore": "*.swp\n.DS_Store\n"})
    write(repo / ".git", {"info/exclude": "notes.txt\n!keep.swp\n"})
    write(
        repo,
        {
            ".gitignore": "# build\n*.log\n!important.log\n/build/\nlocal/*.cfg\n",
            "pkg/.gitignore": "!debug.log\n*.tmp\nbuild\n",
            "a.log": "", "important.log": "", "build/out.o": "", "build/important.log": "",
            "local/x.cfg": "", "pkg/local/x.cfg": "", "pkg/debug.log": "", "pkg/b.log": "",
            "pkg/build": "", "pkg/deep/x.tmp": "", "x.tmp": "", "notes.txt": "", "a.swp": "",
            "keep.swp": "", ".DS_Store": "", "src/main.py": "",
        },
    )  # fmt: skip
    assert_as_git(repo)
    assert why(repo, "pkg/debug.log") is None
    assert why(repo, "build/important.log") == "ignored by .gitignore, line 4"


def test_the_users_file_is_where_git_was_told_it_is(repo: Path, home: Path) -> None:
    write(home, {".gitconfig": "[core]\n\texcludesFile = ~/mine\n", "mine": "*.bak\n"})
    write(repo, {"a.bak": "", "b.py": ""})
    assert why(repo, "a.bak") == "ignored by the user's mine, line 1"
    assert git_says(repo, ["a.bak"]) == {"a.bak": "ignored by the user's mine, line 1"}
    assert why(repo, "b.py") is None


def test_without_git_the_usual_file_of_the_user_holds(
    repo: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home, {".config/git/ignore": "*.bak\n"})
    write(repo, {"a.bak": "", ".gitignore": "*.log\n", "b.log": ""})
    monkeypatch.setenv("PATH", "")
    assert why(repo, "a.bak") == "ignored by the user's ignore, line 1"
    assert why(repo, "b.log") == "ignored by .gitignore, line 1"


def test_in_a_subfolder_the_rules_of_the_repository_hold(repo: Path) -> None:
    write(repo, {".gitignore": "*.log\n/app/gen\n", "app/gen/a.py": "", "app/x.log": ""})
    assert why(repo / "app", "x.log") == "ignored by .gitignore, line 1"
    assert why(repo / "app", "gen") == "ignored by .gitignore, line 2"
    assert set(git_says(repo / "app", ["x.log", "gen"]).values()) != {None}


def test_a_workspace_folder_that_its_repository_ignores_is_left_out(repo: Path) -> None:
    write(repo, {".gitignore": "scratch\n", "scratch/a.py": ""})
    assert ignore_at(repo / "scratch").whole == "ignored by .gitignore, line 1"


def test_a_linked_work_tree_has_the_rules_of_its_repository(repo: Path) -> None:
    write(repo, {"a.py": ""})
    write(repo / ".git", {"info/exclude": "*.note\n"})
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    git(repo, "add", ".")
    git(repo, *identity, "commit", "--quiet", "-m", "a")
    tree = repo.parent / "tree"
    git(repo, "worktree", "add", "--quiet", str(tree))
    write(tree, {"b.note": ""})
    assert why(tree, "b.note") == "ignored by .git/info/exclude, line 1"
    assert git_says(tree, ["b.note"])["b.note"]


def test_a_repository_inside_adds_its_rules_to_the_outer_ones(repo: Path) -> None:
    write(
        repo, {".gitignore": "*.log\n", "lib/.gitignore": "*.o\n", "lib/a.o": "", "lib/a.log": ""}
    )
    git(repo / "lib", "init", "--quiet")
    write(repo / "lib" / ".git", {"info/exclude": "*.note\n"})
    assert why(repo, "lib/a.log") == "ignored by .gitignore, line 1"
    assert why(repo, "lib/a.o") == "ignored by lib/.gitignore, line 1"
    assert why(repo, "lib/b.note") == "ignored by lib/.git/info/exclude, line 1"


def test_a_tracked_file_that_is_ignored_is_left_out(repo: Path) -> None:
    """Git would keep it: its rules are for what it does not track yet. Ours are for privacy."""
    write(repo, {".gitignore": "*.cfg\n", "db.cfg": "password"})
    git(repo, "add", "--force", "db.cfg")
    assert git(repo, "check-ignore", "db.cfg") == b""
    assert why(repo, "db.cfg") == "ignored by .gitignore, line 1"


def test_our_own_files_are_stronger_than_gits_wherever_they_stand(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "gen/*\n*.md\n",
            ".ignore": "!*.md\n",
            ".qcnignore": "!/gen/api.py\nprivate.md\n",
            "docs/.gitignore": "*.md\n",
        },
    )
    assert why(tmp_path, "docs/a.md") is None
    assert why(tmp_path, "docs/private.md") == "ignored by .qcnignore, line 2"
    assert why(tmp_path, "gen/api.py") is None
    assert why(tmp_path, "gen/b.py") == "ignored by .gitignore, line 1"


def test_upper_and_lower_case_are_the_same_where_git_says_so(repo: Path) -> None:
    git(repo, "config", "core.ignoreCase", "true")
    write(
        repo, {".gitignore": "*.LOG\n[!a]x\n/Out/b\n", "a.log": "", "Ax": "", "Bx": "", "out/B": ""}
    )
    assert_as_git(repo)


def test_a_link_is_no_folder_and_a_linked_file_of_rules_has_none(repo: Path) -> None:
    write(repo, {".gitignore": "link/\n", "real/a.py": "", "rules": "*\n"})
    (repo / "link").symlink_to("real")
    (repo / "real" / ".gitignore").symlink_to("../rules")
    assert ignore_at(repo).reason("link", is_folder=False) is None
    assert why(repo, "real/a.py") is None
    assert git_says(repo, ["link", "real/a.py"]) == {"link": None, "real/a.py": None}


def test_the_users_own_file_is_where_the_user_keeps_settings(
    repo: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "settings"))
    write(home, {"settings/git/ignore": "*.swp\n", ".config/git/ignore": "*.py\n"})
    write(repo, {"a.swp": "", "a.py": ""})
    assert_as_git(repo)


def test_the_users_own_file_and_the_repositorys_may_be_links(repo: Path, home: Path) -> None:
    write(home, {".config/git/x": "", "dotfiles/ignore": "*.swp\n", "dotfiles/exclude": "*.note\n"})
    (home / ".config" / "git" / "ignore").symlink_to(home / "dotfiles" / "ignore")
    (repo / ".git" / "info" / "exclude").unlink()
    (repo / ".git" / "info" / "exclude").symlink_to(home / "dotfiles" / "exclude")
    write(repo, {"a.swp": "", "a.note": "", "a.py": ""})
    assert_as_git(repo)
    assert why(repo, "a.swp") == "ignored by the user's ignore, line 1"


@pytest.mark.parametrize("text", ["x" * (MAX_BYTES + 1), "a/**/b/**/c/**/d/**/e\n"])
def test_a_folder_whose_rules_cannot_be_known_is_left_out(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"a/.gitignore": text, "a/b.py": "", "c.py": ""})
    assert "its rules in a/.gitignore cannot be read" in str(why(tmp_path, "a/b.py"))
    assert why(tmp_path, "c.py") is None


def test_a_fifo_in_the_place_of_rules_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".gitignore")
    assert ignore_at(tmp_path).whole is None


def test_a_hostile_pattern_costs_little() -> None:
    rules = Rules("x", b"*a*a*a*a*a*a*a*a*a*a*a*a*a*b")
    assert rules.last_match(b"a" * 255) is None


def test_a_line_of_stars_is_no_reason_to_leave_a_folder_out() -> None:
    rules = Rules("x", b"# rules\n" + b"*" * 70 + b"/\n!src/\n")
    decided = [rules.last_match(name) for name in (b"a/", b"src/", b"a.py")]
    assert [rule and rule.ignores for rule in decided] == [True, False, None]


@pytest.mark.long
@examples(sample=300, full=3_000)
@given(text=st.binary(max_size=60), path=st.binary(min_size=1, max_size=20))
def test_any_bytes_are_rules_or_are_refused(text: bytes, path: bytes) -> None:
    with contextlib.suppress(UnreadableRulesError), warnings.catch_warnings():
        warnings.simplefilter("error")  # what a later Python may read in another way
        Rules("x", text).last_match(path)


# Pieces of patterns and of names that meet often, and all that the two languages disagree about.
PIECES = [
    "a", "b", "ab", "x", ".", "é", "-", "*", "*", "**", "***", "?", "/", "/", "!", "#", " ", "\t",
    "\\", "\\a", "\\*", "\\/", "[ab]", "[!a]", "[^b]", "[a-c]", "[]-a]", "[[:alpha:]]", "[[:no:]]",
    "[![:space:]x]", "[\\]b]", "[a", "[b-a]", "[/]", "[a/b]", "[-b]", "[!!^]", "[^^!]", "]", "**/",
    "/**", "/*", "\r", "[[:]", "[--0]",
]  # fmt: skip
NAMES = ["a", "b", "ab", "aab", "x.a", "é", "!a", "#b", "a ", "a\t", "-", "*", "^", "]", "\\", "[a"]

names = st.sampled_from(NAMES)
trees = st.lists(st.lists(names, min_size=1, max_size=4).map("/".join), min_size=1, max_size=12)
patterns = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
rule_files = st.lists(patterns, max_size=5).map("\n".join)
places = st.sampled_from(["", "a/", "b/", "a/b/", "ab/a/"])


@pytest.mark.long
@examples(sample=150, full=1500)
@given(
    tree=trees,
    rules=st.dictionaries(places, rule_files, max_size=3),
    exclude=rule_files,
    of_user=rule_files,
)
def test_any_rules_over_any_tree_mean_what_git_says(
    tree: list[str], rules: dict[str, str], exclude: str, of_user: str, home: Path
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        bare = {"HEAD": "ref: refs/heads/main\n", "objects/x": "", "refs/x": ""}
        write(root / ".git", {**bare, "info/exclude": exclude})
        write(home, {".config/git/ignore": of_user})
        for path in tree:
            file = root / path
            if not any(above.is_file() for above in [file, *file.parents]):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        for place, text in rules.items():
            if (root / place).is_dir():
                write(root, {place + ".gitignore": text})
        assert_as_git(root)
