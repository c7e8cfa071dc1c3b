"""The template that a checkpoint brings for chats: where it stands, and which one it is.

It is a program of the publisher's, in Jinja. Nothing here runs it: that is the affair of
`template_worker.py`, in a process of its own.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"  # where it stands under `chat_template` in older checkpoints
TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Keys of the same file that templates know by these names."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template and where it was found."""

    path: Path
    text: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    """What it may print as the end of a turn, and the like: special tokens, by their roles."""

    @property
    def sha256(self) -> str:
        """The digest of its text, hexadecimal: what says that it is still the same one."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class NoTemplate(Exception):  # noqa: N818 - most checkpoints that only complete have none
    """The checkpoint brings no template that can be used; str() says why."""


def find_template(folder: Path) -> ChatTemplate:
    """Return the template of the checkpoint in `folder`.

    Raises:
        NoTemplate: it has none, or its file cannot be read.
    """
    config = folder / CONFIG
    try:
        values = json.loads(_read(config) or "{}")
    except (ValueError, RecursionError) as error:
        raise NoTemplate(f"{config} cannot be read ({error})") from error
    values = values if isinstance(values, dict) else {}
    for path, text in ((folder / FILE, _read(folder / FILE)), (config, _in_config(values))):
        if text:
            return ChatTemplate(path, text, _tokens(values))
    raise NoTemplate(f"{folder} holds no chat template: the model only completes")


def _read(path: Path) -> str | None:
    """A file's text, None where it is missing. Raises NoTemplate."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise NoTemplate(f"{path} cannot be read ({error})") from error


def _tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that there are, each as its text or under `content`."""
    given = {name: config.get(name) for name in TOKENS}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in given.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _in_config(config: Mapping[str, Any]) -> str | None:
    """One template, or the default of several that have names."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
