"""Errors as Triton raises them on hardware that is not here: its own frames are in them."""

from triton.compiler import compiler
from triton.runtime.errors import OutOfResources


def take_more_than_there_is() -> None:
    """Load a kernel for a chip with more shared memory."""
    compiler._raise_error(OutOfResources(147_456, 101_376, "shared memory"))
