"""The template that a checkpoint brings for chats: where it stands, and which one it is.

It is a program of the publisher's, in Jinja. Nothing here runs it: that is the affair of
`template_worker.py`, in a process of its own.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"  # where it stands under `chat_template` in older checkpoints


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template and where it was found."""

    path: Path
    text: str

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
    for path in (folder / FILE, folder / CONFIG):
        try:
            text = path.read_text(encoding="utf-8")
            found = text if path.name == FILE else _in_config(json.loads(text))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise NoTemplate(f"{path} cannot be read ({error})") from error
        if found:
            return ChatTemplate(path, found)
    raise NoTemplate(f"{folder} holds no chat template: the model only completes")


def _in_config(config: object) -> str | None:
    """One template, or the default of several that have names."""
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
