"""How this installation of qcn-lsp came here, and the command that mends it or adds to it.

No package index holds qcn-lsp yet, and whoever registers its name there would be installed: a
command names what this installation was made from, a wheel or a folder, and never the name alone.

The engine needs PyTorch, whose build for Linux at PyPI is CUDA's, 5 GB on disk: uv is told to take
what the machine needs. pip and pipx cannot be, without naming an index.
"""

import json
import shlex
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

# What the tools leave in an environment of theirs.
_PIPX_MARK, _UV_MARK = "pipx_metadata.json", "uv-receipt.toml"


def install_command(extra: str = "") -> str:
    """Return the shell command that installs qcn-lsp again, with an extra where one is named."""
    extras = f"[{extra}]" if extra else ""
    source, editable = _source()
    if source is None:
        return f'pip install ".{extras}", in the folder of qcn-lsp\'s source'
    what = shlex.quote(f"{source}{extras}")
    prefix = Path(sys.prefix)
    if (prefix / _PIPX_MARK).is_file():
        return f"pipx install --force {what}"
    if (prefix / _UV_MARK).is_file():
        fitting = "--torch-backend auto " if extra == "engine" and sys.platform != "darwin" else ""
        return f"uv tool install --force {fitting}{what}"
    flags = "-e " if editable else ""
    return f"{shlex.quote(sys.executable)} -m pip install {flags}{what}"


def _source() -> tuple[Path | None, bool]:
    """Return the wheel or folder that was installed, and whether its files are used in place."""
    text = metadata.distribution("qcn-lsp").read_text("direct_url.json")
    record = json.loads(text) if text else {}
    address = urlsplit(record.get("url", ""))
    if address.scheme != "file":
        return None, False
    editable = record.get("dir_info", {}).get("editable", False)
    return Path(url2pathname(address.path)), bool(editable)
