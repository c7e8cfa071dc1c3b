"""The model that a command may be told to use, and the endpoint instead of our engine.

Its token is read from a file: a command line can be read by every user of the machine.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from qcn_indexer.files import read_file

from qcn_lsp.commands.errors import CommandError
from qcn_lsp.engine.runtime import EMBEDDED_MODEL, resolve_model
from qcn_lsp.settings import EngineSettings

LONGEST_TOKEN_FILE = 64 << 10


def server_options(
    model: str | None, url: str | None, token_file: Path | None, *, beside: str | None = None
) -> dict[str, Any]:
    """Return the server's initialization options for a model that completes, and the endpoint.

    `model`: a checkpoint's folder, with a URL the model's name there; None: the default.
    `beside`: the model that chats, for whose engine there has to be room on the GPU.
    """
    options = engine_options(url, token_file, beside)
    models = {}
    if model is not None:
        models["completion"] = model if url else resolve_model(model)
    if (chat := neighbour(beside)) is not None:
        models["chat"] = chat
    return options | ({"models": models} if models else {})


def neighbour(model: str | None) -> str | None:
    """Return the model for whose engine there has to be room, resolved; refuses what is none."""
    if model is None:
        return None
    found = resolve_model(model)
    if found != EMBEDDED_MODEL and not Path(found).is_dir():
        raise CommandError(f"--beside {model}: no such folder")
    return found


def engine_options(
    url: str | None, token_file: Path | None, beside: str | None = None
) -> dict[str, Any]:
    """Return the server's initialization options for the endpoint; empty: our engine."""
    if url is not None and beside is not None:
        raise CommandError("--beside is for our engine's GPU and goes without --engine-url")
    if url is None:
        if token_file is not None:
            raise CommandError("--engine-token-file goes with --engine-url")
        return {}
    try:
        EngineSettings(url=url)
    except ValidationError:
        raise CommandError(
            "--engine-url takes an address such as http://127.0.0.1:8080, without user name or "
            "password"
        ) from None
    token = None if token_file is None else _token(token_file)
    return {"engine": {"url": url, "token": token}}


def _token(path: Path) -> str:
    """Return the one word in a token file."""
    try:
        words = read_file(path, limit=LONGEST_TOKEN_FILE, follow=True).decode("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandError(f"the token file {path}: {reason}") from None
    if len(words) != 1:
        raise CommandError(f"the token file {path} must hold one word, the token")
    return words[0]
