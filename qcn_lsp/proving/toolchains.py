"""What a project's tests need of the machine: interpreters, packages. All of it read-only.

The workspace's own files say where its virtual environment's interpreter lies, and are not trusted
with that: only what is an installation of Python, outside the workspace and not around the user's
folders, is shown.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qcn_indexer.files import read_file

from qcn_lsp.proving.room import python, python_home

_VIRTUAL_ENVIRONMENTS = (".venv", "venv", "env")
_HOME = re.compile(r"^home\s*=\s*(.+?)\s*$", re.MULTILINE)
MAX_CONFIG = 64 * 1024


@dataclass(frozen=True)
class Toolchain:
    """Folders to be seen in the sandbox, and the variables that make programs find them.

    `interpreter` is the project's Python, as a path in the sandbox.
    """

    folders: tuple[Path, ...]
    interpreter: Path
    site_packages: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)
    path: str = ""


def toolchain(root: Path) -> Toolchain:
    """Return what the project in `root` needs, as its files tell."""
    environment = next(
        (folder for name in _VIRTUAL_ENVIRONMENTS if _is_environment(folder := root / name)), None
    )
    folders = [*_python_folders(root, environment), *_packages_of_node(root)]
    variables: dict[str, str] = {}
    path = []
    if environment:
        variables["VIRTUAL_ENV"] = str(environment)
        path.append(str(environment / "bin"))
    for kind in _of_users(root):
        folders += [folder for folder in kind.folders if folder.is_dir()]
        variables |= kind.variables
        path += [kind.path] if kind.path else []
    interpreter = environment / "bin" / "python" if environment else _system_python()
    return Toolchain(
        tuple(folders), interpreter, _site_packages(environment), variables, ":".join(path)
    )


def _is_environment(folder: Path) -> bool:
    return not folder.is_symlink() and (folder / "pyvenv.cfg").is_file()


def _python_folders(root: Path, environment: Path | None) -> list[Path]:
    """Return a virtual environment and the installation that it is based on."""
    if environment is None:
        return []
    try:
        text = read_file(environment / "pyvenv.cfg", limit=MAX_CONFIG).decode("utf-8", "replace")
    except OSError:
        return [environment]
    found = _HOME.search(text)
    base = Path(found[1]).resolve().parent if found and found[1].startswith("/") else None
    return [environment, base] if base and _is_installation(base, root) else [environment]


def _is_installation(base: Path, root: Path) -> bool:
    around = any(base == folder or base in folder.parents for folder in (root, Path.home()))
    has_python = any(base.glob("bin/python3*")) and any(base.glob("lib/python3.*/os.py"))
    return has_python and not around and not base.is_relative_to(root)


def _site_packages(environment: Path | None) -> Path | None:
    return next(environment.glob("lib/python3.*/site-packages"), None) if environment else None


def _system_python() -> Path:
    system = Path("/usr/bin/python3")
    return system if system.exists() else python()


def _packages_of_node(root: Path) -> list[Path]:
    folder = root / "node_modules"
    return [folder] if folder.is_dir() and not folder.is_symlink() else []


def _node_installation(root: Path) -> Path | None:
    """Return where the user's own Node lies (nvm's, say); the system's is seen anyway."""
    found = shutil.which("node")
    if found is None or not Path(found).is_absolute():
        return None
    base = Path(found).resolve().parent.parent
    around = any(base == folder or base in folder.parents for folder in (root, Path.home()))
    is_installation = (base / "bin" / "node").is_file() and (base / "lib/node_modules").is_dir()
    system = base.is_relative_to("/usr")
    outside = not base.is_relative_to(root.resolve())
    return base if is_installation and outside and not around and not system else None


def _of_users(root: Path) -> Iterator[Toolchain]:
    """Yield what lies in the user's folders for all projects of a kind; no key is among it."""
    home = Path.home()
    nothing = python_home() / "bin" / "python3"
    if (root / "package.json").is_file() and (node := _node_installation(root)):
        # Not all of it: beside these there may be an npmrc with a token.
        yield Toolchain((node / "bin", node / "lib"), nothing, None, {}, str(node / "bin"))
    if (root / "Cargo.toml").is_file():
        cargo = home / ".cargo"
        folders = (cargo / "bin", cargo / "registry", cargo / "git", home / ".rustup")
        variables = {
            "CARGO_HOME": str(cargo),
            "CARGO_NET_OFFLINE": "true",
            "RUSTUP_HOME": str(home / ".rustup"),
        }
        yield Toolchain(folders, nothing, None, variables, str(cargo / "bin"))
    if (root / "go.mod").is_file():
        modules = home / "go" / "pkg" / "mod"
        variables = {"GOMODCACHE": str(modules), "GOPROXY": "off", "GOTOOLCHAIN": "local"}
        yield Toolchain((modules,), nothing, None, variables, "/usr/local/go/bin")
    if (root / "pom.xml").is_file():
        yield Toolchain((home / ".m2" / "repository",), nothing)
    if any((root / name).is_file() for name in ("build.gradle", "build.gradle.kts")):
        caches = home / ".gradle" / "caches"
        yield Toolchain((caches,), nothing, None, {"GRADLE_RO_DEP_CACHE": str(caches)})
