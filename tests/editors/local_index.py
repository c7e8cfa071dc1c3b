"""A package index in a folder, and the tools that install from it: `local_index.py FOLDER WHEEL`.

For tests of the installation that need no network and no GB: `FOLDER/wheels` holds what our wheel
and its engine need, downloaded once, but for torch. Torch is there as a wheel that makes the torch
of the Python that runs this visible, with all that is installed beside it; what an environment has
itself comes first. `FOLDER/tools/bin` has uv and pipx.
"""

import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from sysconfig import get_path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def build_stand_in(wheels: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Write a wheel of this name that holds `files` by their paths."""
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(wheels / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(path, text)


def build_index(folder: Path, wheel: Path) -> None:
    """Fill `folder`."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    torch = metadata.version("torch").partition("+")[0] + "+here"
    build_stand_in(wheels, "torch", torch, {"torch_here.pth": f"{get_path('purelib')}\n"})
    build_stand_in(wheels, "triton", "99+here", {})
    here = folder / "here.txt"
    here.write_text(f"torch=={torch}\ntriton==99+here\n")
    pip = (sys.executable, "-m", "pip", "download", "-q", "-d", wheels, "-f", wheels)
    constraints = ("-c", CONSTRAINTS, "-c", here)
    subprocess.run(
        [*pip, *constraints, f"qcn-lsp[engine] @ {wheel.absolute().as_uri()}"], check=True
    )
    (wheels / wheel.name).unlink()  # it comes with the extension
    tools = folder / "tools"
    venv.create(tools, with_pip=True, clear=True)
    subprocess.run(
        [tools / "bin" / "python", "-m", "pip", "install", "-q", "uv", "pipx"], check=True
    )


if __name__ == "__main__":
    build_index(Path(sys.argv[1]), Path(sys.argv[2]))
