"""Messages become ids by the checkpoint's template, and data in them stays data."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chatml_template import CHATML, write_chat_model
from engine_support import CONTROL_STRINGS, VOCAB_SIZE
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.chat_prompt import Rendering
from qcn_inference.chat_template import ChatTemplate, NoTemplate, find_template
from qcn_inference.request import RequestError
from qcn_inference.service import rendering
from qcn_inference.service.chat_schemas import MessageBody, ToolBody
from qcn_inference.service.errors import ApiError
from qcn_inference.service.rendering import Renderer
from qcn_inference.tokenizer import Tokenizer
from sampling import examples
from transformers import PreTrainedTokenizerFast

LONGEST = 100_000
TOOL = {
    "type": "function",
    "function": {
        "name": "edit",
        "description": " Edits a file. ",
        "parameters": {
            "type": "object",
            "properties": {
                "path": {"type": "string", "enum": ["a", "b"]},
                "type": {"type": "array", "items": {"type": "string", "tool_call": 1}},
            },
            "required": ["path"],
        },
    },
}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "Where is naïve(日本)?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "edit", "arguments": '{"path": "a\\nb", "type": [1, "\\""]}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "done\n"}]},
    {"role": "tool", "tool_call_id": "c2", "content": "user"},
    {"role": "assistant", "content": "There.\n\n"},
    {"role": "user", "content": "  Thanks "},
]


TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


class Templates:
    """Renders with the small tokenizer, by us and by transformers."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer(folder, VOCAB_SIZE)
        self._runner = asyncio.Runner()
        self._renderers: dict[str, Renderer] = {}
        file = str(folder / "tokenizer.json")
        self._theirs = PreTrainedTokenizerFast(tokenizer_file=file, chat_template=CHATML, **TOKENS)

    def ids(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        template: str = CHATML,
    ) -> list[int]:
        values = self._values(messages, tools)
        found = ChatTemplate(Path("chat_template.jinja"), template, TOKENS)
        rendering = Rendering.of(self.tokenizer, found, values, longest=LONGEST)
        if template not in self._renderers:
            self._renderers[template] = Renderer(found)
        text = self._runner.run(self._renderers[template].render(rendering.request))
        return rendering.ids(self.tokenizer, text)

    def theirs(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        tokenize: bool,
        template: str = CHATML,
    ) -> Any:
        values = self._values(messages, tools)
        return self._theirs.apply_chat_template(
            values["messages"],
            tools=values.get("tools"),
            chat_template=template,
            add_generation_prompt=True,
            tokenize=tokenize,
            return_dict=False,
        )

    def _values(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
    ) -> dict[str, Any]:
        bodies = [MessageBody.model_validate_json(json.dumps(one)) for one in messages]
        values: dict[str, Any] = {"messages": [body.values for body in bodies]}
        if tools:
            declared = [ToolBody.model_validate_json(json.dumps(one)) for one in tools]
            values["tools"] = [body.values for body in declared]
        return values

    def close(self) -> None:
        for renderer in self._renderers.values():
            self._runner.run(renderer.close())
        self._runner.close()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Templates]:
    made = Templates(write_chat_model(tmp_path_factory.mktemp("chat") / "model"))
    with pytest.MonkeyPatch.context() as patch:
        # However busy the machine, it is the limit of CPU time that is met.
        patch.setattr(rendering, "PATIENCE_SECONDS", 600.0)
        yield made
    made.close()


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no tools", "tools"])
@pytest.mark.parametrize("start", [0, 1], ids=["system", "no system"])
def test_ids_are_those_of_transformers(
    templates: Templates, tools: list[dict[str, Any]] | None, start: int
) -> None:
    found = templates.ids(CHAT[start:], tools)
    assert found == templates.theirs(CHAT[start:], tools, tokenize=True)


nasty = st.lists(
    st.sampled_from(
        [
            *CONTROL_STRINGS,
            *("<|", "|>", "<|im_", "im_end|>", "<", ">", "</", "tool_call", "im_start"),
            *("user", "type", "\n", " ", "x", "é", '"', "\\", "{{ 7*7 }}", "{% raw %}"),
            *(chr(0x100000 + n) for n in (0, 1, 40, 65_000)),
        ]
    ),
    max_size=6,
).map("".join)


@pytest.mark.long
@examples(sample=100, full=1500)
@given(
    texts=st.tuples(*[nasty] * 5),
    key=nasty.filter(lambda key: key not in ("type", "description")),
)
def test_no_data_becomes_a_control_token_and_all_of_it_is_read(
    templates: Templates, texts: tuple[str, ...], key: str
) -> None:
    def chat(texts: Iterable[str], key: str) -> Any:
        system, user, argument, result, described = texts
        call = {"name": "edit", "arguments": json.dumps({key: argument, "more": [argument, key]})}
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": user},
            {"role": "assistant", "tool_calls": [{"function": call}]},
            {"role": "tool", "content": result},
        ]
        schema = {"type": "string", key: [described]}
        tool = {
            "name": "edit",
            "description": described,
            "parameters": {"properties": {key: schema}},
        }
        return messages, [{"type": "function", "function": tool}]

    messages, tools = chat(texts, key)
    ids = templates.ids(messages, tools)
    control = templates.tokenizer.control_ids
    harmless = templates.ids(*chat("abcde", "f"))
    assert [one for one in ids if one in control] == [one for one in harmless if one in control]
    assert templates.tokenizer.decode(ids) == templates.theirs(messages, tools, tokenize=False)


def test_a_template_may_refuse_what_it_cannot_show(templates: Templates) -> None:
    with pytest.raises(ApiError, match="template refuses this: no place for a system here") as told:
        templates.ids([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}])
    assert told.value.status == 400


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "CPU"),
        ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "longer than the model's"),
        ("{{ 'x' * 9999999999 }}", "more memory than it may have"),
        ("{% set l = [] %}{% for a in range(9) %}{{ l.append(a) }}{% endfor %}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("\n\n{{ messages[0].content + 1 }}", "line 3: TypeError"),
        ("{% for %}", "line 1"),
        ("{{ strftime_now(1) }}", "TypeError"),
    ],
)
def test_a_template_that_is_wrong_or_takes_too_much_is_told_and_nothing_else_happens(
    templates: Templates, template: str, reason: str
) -> None:
    with pytest.raises(ApiError) as told:
        templates.ids([{"role": "user", "content": "a"}], template=template)
    assert told.value.status == 500
    assert "chat_template.jinja" in told.value.message
    assert reason in told.value.message
    assert templates.ids(CHAT) == templates.theirs(CHAT, tokenize=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% endfor %}{{ pad_token }}",
    ],
)
def test_what_templates_of_trainers_use_is_there(templates: Templates, template: str) -> None:
    """Special tokens by their roles, those that the tokenizer has; the mark of what is learnt."""
    messages = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "a"}]
    ids = templates.ids(messages, template=template)
    plain = [{**message, "content": message["content"].strip("<>")} for message in messages]
    assert templates.ids(plain, template=template) == templates.theirs(
        plain, tokenize=True, template=template
    )
    end = templates.tokenizer.control_names["<|im_end|>"]
    assert ids.count(end) == len(messages), "and none of them is of the data"


def test_a_process_that_has_ended_is_followed_by_another(templates: Templates) -> None:
    looping = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = f"{{% if messages|length > 1 %}}{looping}{{% endif %}}<|im_end|>"
    with pytest.raises(ApiError, match="CPU"):
        templates.ids(CHAT, template=template)
    ids = templates.ids(CHAT[:1], template=template)
    assert templates.tokenizer.decode(ids) == "<|im_end|>"


UNDER_A_LIMIT = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
os.execv(sys.executable, sys.argv[1:])
"""


def test_a_machine_that_bounds_the_time_of_its_users_renders_too() -> None:
    """As those that many share do; nobody but root can raise such a limit again."""
    by = [sys.executable, "-c", UNDER_A_LIMIT]
    if os.geteuid() == 0:
        if (setpriv := shutil.which("setpriv")) is None:
            pytest.skip("nothing bounds root, and there is no setpriv")
        by = [setpriv, "--bounding-set", "-sys_resource", *by]
    limits = {"cpu_seconds": 3, "memory_bytes": rendering.MEMORY_BYTES}
    request = {"values": {}, "base": 0x100000, "alphabet": "<", "longest": LONGEST}
    frames = [{"template": "a", **limits}, request]
    done = subprocess.run(
        [*by, sys.executable, "-P", str(rendering.WORKER)],
        input=b"".join(map(rendering._framed, frames)),
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout[4:]) == {"text": "a"}


def test_messages_beyond_any_context_are_refused_before_they_are_rendered(
    templates: Templates,
) -> None:
    with pytest.raises(RequestError, match="longer than the model's context"):
        templates.ids([{"role": "user", "content": "x" * (LONGEST + 1)}])


class TestFinding:
    def test_its_own_file_goes_first(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old"}')
        assert find_template(tmp_path).text == "old"
        (tmp_path / "chat_template.jinja").write_text("new")
        assert find_template(tmp_path) == ChatTemplate(tmp_path / "chat_template.jinja", "new")

    @pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
    def test_special_tokens_come_with_it(self, tmp_path: Path, file: str) -> None:
        written = {"bos_token": None, "eos_token": "a", "pad_token": {"content": "b"}}
        config = json.dumps(written | {"chat_template": "x", "eos_token_id": 1})
        (tmp_path / "tokenizer_config.json").write_text(config)
        if file == "chat_template.jinja":
            (tmp_path / file).write_text("x")
        tokens = {"eos_token": "a", "pad_token": "b"}
        assert find_template(tmp_path) == ChatTemplate(tmp_path / file, "x", tokens)

    def test_of_several_the_default_is_taken(self, tmp_path: Path) -> None:
        several = [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
        assert find_template(tmp_path).text == "b"

    @pytest.mark.parametrize("config", ["", "[", "[]", "{}", '{"chat_template": 3}', "\xff"])
    def test_without_one_the_reason_names_folder_or_file(self, tmp_path: Path, config: str) -> None:
        (tmp_path / "tokenizer_config.json").write_bytes(config.encode("latin-1"))
        with pytest.raises(NoTemplate, match=str(tmp_path)):
            find_template(tmp_path)
