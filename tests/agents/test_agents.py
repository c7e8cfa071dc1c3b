"""Coding agents as they come from npm, on our engine: wire and tool format.

What a model would write stands in a script; HTTP, template, prompt and the parser of tool calls are
the engine's own. `make test-agents` installs the agents and runs these.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from chatml_template import write_chat_model
from deadlines import DEADLINE_SECONDS
from scripted_engine import scripted_engine
from written_calls import rendered

BINARIES = Path(__file__).parents[2] / "build" / "agents" / "node_modules" / ".bin"
pytestmark = pytest.mark.skipif(
    not BINARIES.is_dir(), reason="the agents are not installed: make test-agents"
)

TASK = "Write out.txt"
CONTENT = 'null\n</function> "é" <|im_end|>\n'


class Script:
    """Calls a tool once, and is content with its result."""

    def __init__(self, tool: str, arguments: dict[str, str]) -> None:
        self.call = "I write it.\n\n" + rendered(tool, arguments)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        if TASK not in prompt:
            return "Its title"  # some ask for one
        self.prompts.append(prompt)
        asked = prompt.rpartition("<|im_start|>user")[2]
        return "It is written." if "<tool_response>" in asked else self.call


def run(command: list[str], folder: Path, **environment: str) -> str:
    """Run an agent in a folder, with a home of its own, to its end; return what it printed."""
    home = folder.parent / "home"
    home.mkdir()
    ended = subprocess.run(
        [str(BINARIES / command[0]), *command[1:]],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("agents") / "small", context_length=2**18)


def test_qwen_code_writes_the_file_that_the_model_asks_for(project: Path, model: Path) -> None:
    target = project / "out.txt"
    script = Script("write_file", {"file_path": str(target), "content": CONTENT})
    with scripted_engine(model, script) as url:
        printed = run(
            ["qwen", "-p", TASK, "--approval-mode", "yolo", "--auth-type", "openai"],
            project,
            OPENAI_API_KEY="none",
            OPENAI_BASE_URL=f"{url}/v1",
            OPENAI_MODEL=model.name,
        )
    assert target.read_text() == CONTENT
    assert "It is written." in printed
    assert script.call.partition("\n\n")[2] in script.prompts[-1], "told as the model wrote it"


def test_opencode_writes_the_file_that_the_model_asks_for(project: Path, model: Path) -> None:
    target = project / "out.txt"
    script = Script("write", {"filePath": str(target), "content": CONTENT})
    with scripted_engine(model, script) as url:
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": f"{url}/v1", "apiKey": "none"},
            "models": {model.name: {"limit": {"context": 200_000, "output": 4096}}},
        }
        named = f"local/{model.name}"
        settings = {"model": named, "small_model": named, "provider": {"local": provider}}
        (project / "opencode.json").write_text(json.dumps(settings | {"autoupdate": False}))
        printed = run(
            ["opencode", "run", TASK],
            project,
            OPENCODE_DISABLE_MODELS_FETCH="1",
            OPENCODE_DISABLE_AUTOUPDATE="1",
            OPENCODE_DISABLE_LSP_DOWNLOAD="1",
            OPENCODE_DISABLE_DEFAULT_PLUGINS="1",
        )
    assert target.read_text() == CONTENT
    assert "It is written." in printed
    assert script.call.partition("\n\n")[2] in script.prompts[-1], "told as the model wrote it"
