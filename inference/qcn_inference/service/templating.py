"""The checkpoint's template at work for the service: messages in, its text and their marks out."""

from collections.abc import Mapping
from typing import Any

from qcn_inference.chat_prompt import Rendering
from qcn_inference.request import RequestError
from qcn_inference.service.engine import Engine
from qcn_inference.service.errors import ApiError, as_api_error


async def rendered(
    engine: Engine, values: Mapping[str, Any], *, placed: bool = False
) -> tuple[Rendering, str]:
    """What the template makes of messages; with `placed` with the place of a repository in it.

    Raises:
        ApiError: the model does not chat, or its template fails, or refuses the messages.
    """
    loaded, renderer = engine.ready(), engine.renderer()
    longest = loaded.context_length * loaded.tokenizer.longest_token_bytes
    try:
        rendering = Rendering.of(
            loaded.tokenizer, renderer.template, values, longest=longest, placed=placed
        )
    except RequestError as error:
        raise as_api_error(error) from None
    try:
        return rendering, await renderer.render(rendering.request)
    except ApiError as error:  # what it quotes is marked
        message = rendering.marks.unmark(error.message)
        raise ApiError(error.status, error.kind, message) from None


async def turn_in_front(engine: Engine) -> str:
    """What the template has in front of a repository: how it begins the system's turn.

    Raises:
        ApiError: the model does not chat, or its template has no place for a repository.
    """
    if engine.chat_turn is None:
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": ""}]
        rendering, text = await rendered(engine, {"messages": messages}, placed=True)
        try:
            engine.chat_turn, _ = rendering.around_place(text)
        except RequestError as error:
            raise as_api_error(error) from None
    return engine.chat_turn
