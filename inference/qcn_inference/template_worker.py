"""Renders a chat template: a program of its own, run as a file, with Jinja and nothing of ours.

A template comes with a checkpoint from the net. Jinja's immutable sandbox keeps it from everything
but its data; this process keeps it from taking more than its share: seconds of CPU time, bytes of
memory, characters of output. One that takes more ends this process, and the engine starts another.

Messages on standard input and output are JSON behind its length, four bytes, the highest first. The
first brings the template and the limits; each further one is rendered and answered by `text`, or by
`error` with the line it came from.

Data arrives *marked* (`chat_prompt.py`): private characters stand for those of which control tokens
consist. They pass through a template as any characters do, except through `tojson`, which must see
what they stand for.
"""

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Refusal(TemplateError):  # noqa: N818 - an outcome, not an error of the program
    """What a template raises itself: these messages are not for this model."""


class Generation(Extension):
    """`{% generation %}`, by which trainers find what the model is to learn: what is in it."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[Node]:
        """Take the tag off."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Marks:
    """The private characters of the request at hand, and what they stand for."""

    def choose(self, base: int, alphabet: str) -> None:
        """Take those from `base` on for the characters of `alphabet`."""
        self._marked = {ord(plain): base + n for n, plain in enumerate(alphabet)}
        self._plain = {base + n: plain for n, plain in enumerate(alphabet)}

    def to_json(self, value: Any, indent: int | None = None, **options: Any) -> str:
        """The filter `tojson`, as chat templates know it: it escapes nothing for HTML."""
        options = {"ensure_ascii": False, "indent": indent} | options
        return json.dumps(self._unmarked(value), **options).translate(self._marked)

    def _unmarked(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.translate(self._plain)
        if isinstance(value, dict):
            return {self._unmarked(key): self._unmarked(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._unmarked(one) for one in value]
        return value


def main() -> None:
    """Answer until nothing more comes."""
    template: Template | None = None
    first = _receive()
    if first is None:
        return
    _limit_memory(first["memory_bytes"])
    marks = Marks()
    environment = _environment(marks)
    while (request := _receive()) is not None:
        _limit_time(first["cpu_seconds"])
        try:
            if template is None:
                template = environment.from_string(first["template"])
            marks.choose(request["base"], request["alphabet"])
            answer = {"text": _rendered(template, request["values"], request["longest"])}
        except Refusal as error:
            answer = {"refused": str(error)}
        except TemplateSyntaxError as error:
            answer = {"error": f"line {error.lineno}: {error.message}"}
        except MemoryError:
            answer = {"error": "it takes more memory than it may have"}
        except Exception as error:  # whatever a template does is told, not our end
            answer = {"error": f"{_place(error)}{type(error).__name__}: {error}"[:1000]}
        _send(answer)


def _environment(marks: Marks) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = marks.to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 - the user's
    return environment


def _refuse(message: object) -> None:
    raise Refusal(str(message))


def _rendered(template: Template, values: dict[str, Any], longest: int) -> str:
    pieces, left = [], longest
    for piece in template.generate(values):
        left -= len(piece)
        if left < 0:
            raise ValueError("its output is longer than the model's context")
        pieces.append(piece)
    return "".join(pieces)


def _place(error: BaseException) -> str:
    """The line of the template that an error comes from, if it does."""
    line, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<template>":
            line = step.tb_lineno
        step = step.tb_next
    return "" if line is None else f"line {line}: "


def _limit_memory(nbytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # macOS holds to no such limit
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))


def _limit_time(seconds: int) -> None:
    """End this process by SIGXCPU when it has worked for so long from now on."""
    try:
        import resource
    except ImportError:  # Windows: the engine's patience is the limit
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime) + 1 + seconds
    _, most = resource.getrlimit(resource.RLIMIT_CPU)  # a machine may have set one, for good
    end = end if most == resource.RLIM_INFINITY else min(end, most)
    resource.setrlimit(resource.RLIMIT_CPU, (end, most))


def _receive() -> dict[str, Any] | None:
    length = sys.stdin.buffer.read(4)
    if len(length) < 4:
        return None
    message: dict[str, Any] = json.loads(sys.stdin.buffer.read(int.from_bytes(length, "big")))
    return message


def _send(message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    sys.stdout.buffer.write(len(data).to_bytes(4, "big") + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
