"""`POST /tokenize` and `/detokenize`: llama.cpp's."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qcn_inference.service.http import engine_of, read_body
from qcn_inference.service.schemas import DetokenizeBody, TokenizeBody
from qcn_inference.tokenizer import Tokenizer


async def post_tokenize(request: Request) -> Response:
    """The token ids of a text, with each token's piece, or their number, if asked for."""
    tokenizer = engine_of(request).ready().tokenizer
    body = await read_body(request, TokenizeBody)
    encode = tokenizer.encode_with_control if body.parse_special else tokenizer.encode_plain
    ids = await run_in_threadpool(encode, body.content)  # a long text takes seconds
    if body.count_only:
        return JSONResponse({"count": len(ids)})
    if body.with_pieces:
        return JSONResponse(
            {"tokens": [{"id": token, "piece": _piece(tokenizer, token)} for token in ids]}
        )
    return JSONResponse({"tokens": ids})


def _piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """A token's text, or its bytes where they are part of a character."""
    piece = tokenizer.token_bytes(token)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


async def post_detokenize(request: Request) -> Response:
    """The text of token ids, control tokens by their names."""
    tokenizer = engine_of(request).ready().tokenizer
    body = await read_body(request, DetokenizeBody)
    return JSONResponse({"content": tokenizer.decode(body.tokens)})
