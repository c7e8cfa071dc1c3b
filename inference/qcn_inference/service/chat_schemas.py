"""The body of `POST /v1/chat/completions`, checked as strictly as the others (`schemas.py`)."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from qcn_inference.service.schemas import MAX_LOGPROBS, Body, OpenAIBody
from qcn_inference.tool_calls import LONGEST_NAME, loads

Name = Annotated[str, Field(pattern=rf"^[^<>\s]{{1,{LONGEST_NAME}}}$")]


class TextPart(Body):
    """A part of a message: text is all that is read."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """A call that the model made earlier; its arguments are a JSON object as text."""

    name: Name
    arguments: str = "{}"

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, arguments: str) -> str:
        try:
            value = loads(arguments or "{}")
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError("must be a JSON object, as text")
        return arguments or "{}"


class ToolCallBody(Body):
    """OpenAI's wrapping of a call."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class MessageBody(Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The message as templates know it: text in one piece, arguments as an object."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in parts)
        values: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": text,
        }
        if self.tool_calls:
            values["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {
                        "name": call.function.name,
                        "arguments": loads(call.function.arguments),
                    },
                }
                for call in self.tool_calls
            ]
        more = {"name": self.name, "tool_call_id": self.tool_call_id}
        return values | {key: value for key, value in more.items() if value is not None}


class FunctionBody(Body):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(Body):
    """OpenAI's wrapping of a function."""

    type: Literal["function"]
    function: FunctionBody

    @property
    def values(self) -> dict[str, Any]:
        """The tool as templates know it."""
        described = {"description": self.function.description}
        return {
            "type": "function",
            "function": {
                "name": self.function.name,
                **{key: value for key, value in described.items() if value is not None},
                "parameters": self.function.parameters or {"type": "object", "properties": {}},
            },
        }


class NamedFunction(Body):
    """A function by its name."""

    name: Name


class NamedTool(Body):
    """OpenAI's way to ask for one tool."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ResponseFormat(Body):
    """Text is the only format that is served."""

    type: Literal["text"]


_SAID_ELSEWHERE = {"messages", "tools", "add_generation_prompt"}


class ChatBody(OpenAIBody):
    """`POST /v1/chat/completions`, as OpenAI defines it.

    `chat_template_kwargs` is vLLM's, `return_progress` llama.cpp's.
    """

    messages: Annotated[list[MessageBody], Field(min_length=1)]
    priority: Literal["completion", "chat", "refresh", "compaction"] = "chat"
    tools: list[ToolBody] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, bool | int | None] | None = None
    return_progress: bool | None = False

    @model_validator(mode="after")
    def _fits_together(self) -> "ChatBody":
        names = {tool.function.name for tool in self.tools or ()}
        match self.tool_choice:
            case "required" if not names:
                raise ValueError("tool_choice: goes with tools")
            case NamedTool(function=NamedFunction(name=name)) if name not in names:
                raise ValueError("tool_choice: names none of the tools")
        if _SAID_ELSEWHERE & (self.chat_template_kwargs or {}).keys():
            raise ValueError("chat_template_kwargs: holds what the request says elsewhere")
        return self

    @property
    def declared(self) -> list[ToolBody]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def forced(self) -> str:
        """How the answer begins, where a call is asked for."""
        match self.tool_choice:
            case "required":
                return "<tool_call>\n<function="
            case NamedTool(function=NamedFunction(name=name)):
                return f"<tool_call>\n<function={name}>\n"
        return ""

    @property
    def alternatives(self) -> int | None:
        """Of how many tokens log-probabilities are asked for at each place, if at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        """The most tokens to answer with; None where only the context is the limit."""
        asked = self.max_completion_tokens
        return self.max_tokens if asked is None else asked
