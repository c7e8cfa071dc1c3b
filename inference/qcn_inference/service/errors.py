"""Every error answer, in OpenAI's shape: `{"error": {"message", "type", "code"}}`."""

from collections.abc import Mapping
from concurrent.futures import CancelledError

from pydantic import ValidationError
from starlette.responses import JSONResponse

from qcn_inference.errors import DeviceError, DeviceMemoryError
from qcn_inference.kernel_errors import explained, is_of_kernels
from qcn_inference.request import RequestError
from qcn_inference.scheduler import Closed, Superseded

# A validation message names the fields; it never repeats their values, which are somebody's source
# text.
MOST_FIELDS_NAMED = 5

OUT_OF_MEMORY = (
    "the GPU's memory does not suffice for this request, though all that could be spared was given "
    "back. End other programs on the GPU, ask with less text, take a smaller or a quantised model, "
    'or set "qcn.engine.device" to "cpu".'
)


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


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told about a job that has no result."""
    match error:
        case RequestError():
            return ApiError(400, "invalid_request_error", str(error))
        case Superseded():
            return ApiError(409, "superseded", "a newer request has taken this one's place")
        case Closed() | CancelledError():
            return ApiError(503, "unavailable", "the engine is leaving")
        case DeviceMemoryError():
            return ApiError(500, "out_of_memory", str(error))
        case DeviceError():
            return ApiError(503, "unavailable", str(error))
    from qcn_inference.device import is_out_of_memory

    if is_out_of_memory(error):
        return ApiError(500, "out_of_memory", OUT_OF_MEMORY)
    if is_of_kernels(error):  # one that is compiled at its first use, in the middle of a request
        return ApiError(500, "internal_error", f"a kernel does not run: {explained(error)}.")
    return ApiError(500, "internal_error", f"the request failed ({type(error).__name__})")
