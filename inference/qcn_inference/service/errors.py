"""Every error answer, in OpenAI's shape: `{"error": {"message", "type", "code"}}`."""

from collections.abc import Mapping

from pydantic import ValidationError
from starlette.responses import JSONResponse

# A validation message names the fields; it never repeats their values, which are somebody's source
# text.
MOST_FIELDS_NAMED = 5


class ApiError(Exception):
    """An answer other than success; `message` is for the caller."""

    def __init__(
        self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers = headers

    @property
    def body(self) -> dict[str, object]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "code": self.status}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def invalid(error: ValidationError) -> ApiError:
    """A body that is not what the call takes."""
    problems = [
        f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False, include_context=False)
    ]
    more = len(problems) - MOST_FIELDS_NAMED
    shown = "; ".join(problems[:MOST_FIELDS_NAMED]) + (f"; and {more} more" if more > 0 else "")
    return ApiError(400, "invalid_request_error", shown)
