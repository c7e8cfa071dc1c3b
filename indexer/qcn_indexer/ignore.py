"""What the user has asked to be left out of a workspace folder: git's ignore rules, and ours.

Files of rules, the strongest first; within each kind the file nearest to the path comes first, and
in a file its last matching line:

1. `.qcnignore`, for this program alone;
2. `.ignore`, which search tools read;
3. `.gitignore`;
4. the repository's `info/exclude`;
5. the user's own file: `core.excludesFile`, by default `git/ignore` in `$XDG_CONFIG_HOME`.

All but 1 and 2 are git's, and decided as git decides; a stronger kind may also take back what a
weaker one ignores. Below a folder that is ignored nothing is taken back. The rules of a repository
hold from its top, also where the workspace folder lies deeper, and `.gitignore` holds where there
is no repository as well.

Where git leaves a choice, we take the private one:
- a file that git tracks although a rule ignores it is left out (git's rules do not apply to it);
- a repository inside another one has its own rules added to the outer ones; a further work tree
  of the same one (`git worktree add trees/fix`), in which all files stand once more, is left out;
- a folder whose rules cannot be read is left out as a whole.
As in git, a `.gitignore` that is a symbolic link is not followed and has no rules.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from qcn_indexer.files import NotAFileError, read_file
from qcn_indexer.git import git_settings
from qcn_indexer.git_folders import git_folder, shared_folder
from qcn_indexer.ignore_rules import Rules, UnreadableRulesError

IN_FOLDERS = (".qcnignore", ".ignore", ".gitignore")
# Far above what people write, and a bound on what a hostile file can cost: seconds.
MAX_BYTES = 256 * 1024
# The strongest kind first: the three of `IN_FOLDERS`, `info/exclude`, and the user's own file.
_Kinds = tuple[tuple["_Placed", ...], ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """Rules and the length of the path of the folder that they hold for."""

    rules: Rules
    start: int


@dataclass(frozen=True, slots=True)
class Ignore:
    """The rules that hold for what lies directly in one folder. Immutable; share it freely."""

    folder: Path
    whole: str | None
    """Why the folder itself is left out, with all that it holds, or None."""
    _path: bytes
    _kinds: _Kinds
    _ignore_case: bool
    unread: bool = False
    """Whether that is because its rules, and so perhaps the folder, cannot be read."""
    _repository: Path | None = None
    """Of the work tree around, as far as that belongs to the workspace folder."""

    def reason(self, name: str, *, is_folder: bool) -> str | None:
        """Return which line ignores `name` of this folder, or None."""
        path = self._path + os.fsencode(name) + (b"/" if is_folder else b"")
        for kind in self._kinds:
            for placed in kind:
                if rule := placed.rules.last_match(path[placed.start :]):
                    if rule.ignores:
                        return f"ignored by {placed.rules.source}, line {rule.line}"
                    return None
        return None

    def inside(self, name: str) -> "Ignore":
        """Return the rules for what lies in the folder `name` of this one."""
        whole = self.whole or self.reason(name, is_folder=True)
        path = self._path + os.fsencode(name) + b"/"
        below = replace(self, folder=self.folder / name, whole=whole, _path=path)
        return below if whole else _with_own_rules(below)


@dataclass(frozen=True, slots=True)
class UserRules:
    """What the user has set for all repositories, or for this one outside its files."""

    file: Path
    ignore_case: bool  # whether upper and lower case are the same


def ignore_at(root: Path, users: UserRules | None = None) -> Ignore:
    """Return the rules for what lies directly in the workspace folder `root`.

    `users` spares asking git, which takes a process.
    """
    root = root.resolve()
    users = users or user_rules(root)
    top = next((folder for folder in (root, *root.parents) if git_folder(folder)), root)
    rules = Ignore(top, None, b"", ((),) * 5, users.ignore_case)
    rules = _with_file(rules, 4, users.file, f"the user's {users.file.name}", follow=True)
    rules = _with_own_rules(rules)
    if top != root:
        rules = replace(rules, _repository=None)
    for name in root.relative_to(top).parts:
        rules = rules.inside(name)
    return rules


def _with_own_rules(rules: Ignore) -> Ignore:
    """Add the rules that stand in the folder itself."""
    below = os.fsdecode(rules._path)
    for kind, name in enumerate(IN_FOLDERS):
        rules = _with_file(rules, kind, rules.folder / name, below + name, follow=False)
    if git := git_folder(rules.folder):
        shared = shared_folder(git).resolve()
        if shared == rules._repository:
            return replace(rules, whole="it is another work tree of the repository around it")
        exclude = shared / "info" / "exclude"
        rules = _with_file(rules, 3, exclude, f"{below}.git/info/exclude", follow=True)
        # Where work trees stand side by side around a bare repository, there is no index.
        rules = replace(rules, _repository=shared if (git / "index").is_file() else None)
    return rules


def _with_file(rules: Ignore, kind: int, file: Path, source: str, *, follow: bool) -> Ignore:
    try:
        text = read_file(file, limit=MAX_BYTES, follow=follow)
        added = Rules(source, text, ignore_case=rules._ignore_case)
    except (FileNotFoundError, NotADirectoryError, NotAFileError):
        return rules
    except (OSError, UnreadableRulesError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return replace(rules, whole=f"its rules in {source} cannot be read: {why}", unread=True)
    kinds = list(rules._kinds)
    kinds[kind] = (_Placed(added, len(rules._path)), *kinds[kind])
    return replace(rules, _kinds=tuple(kinds))


def user_rules(root: Path) -> UserRules:
    """Return the user's own file of rules, and whether upper and lower case are the same.

    Git itself is asked where it is installed: its settings may be conditional and include others.
    """
    settings = _settings_of_git(root)
    # Not `Path.home()`, which raises where there is no home.
    config_home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111
    usual = Path(config_home, "git", "ignore")
    named = settings.get("core.excludesfile")
    ignore_case = settings.get("core.ignorecase", "").lower() in {"true", "yes", "on", "1"}
    return UserRules(usual if named is None else root / named, ignore_case)


def _settings_of_git(root: Path) -> dict[str, str]:
    answer = git_settings(root, r"^core\.(excludesfile|ignorecase)$") or b""
    # The last one of a name holds, as for git.
    entries = [entry.partition("\n") for entry in os.fsdecode(answer).split("\0")]
    return {name: text for name, _, text in entries}
