"""From a plan to memory that was really given: what fails becomes a smaller plan, or a refusal."""

import logging
from collections.abc import Callable
from typing import TypeVar

from qcn_inference.device import is_out_of_memory
from qcn_inference.errors import DeviceMemoryError
from qcn_inference.planning.plan import Plan, Refusal, smaller

log = logging.getLogger(__name__)

T = TypeVar("T")


def placed(first: Plan | Refusal, place: Callable[[Plan], T]) -> T:
    """Return what `place` returns for the first plan whose memory is given.

    Other programs take memory between looking and taking, and allocators lose some: so a plan that
    should fit may not. What a failed attempt had taken must be free when `place` has raised.

    Args:
        first: tried before smaller ones.
        place: takes the memory; raises torch.OutOfMemoryError or DeviceMemoryError where it is not
            given. Other errors end the search.

    Raises:
        DeviceMemoryError: not even the smallest plan fits; says what is missing and the remedy.
    """
    found, reason = first, ""
    while isinstance(found, Plan):
        try:
            return place(found)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            log.warning("memory ran out under a plan for %s: %s", found.placement, reason)
        found = smaller(found)
    tried = f" Last, {reason}" if reason else ""
    raise DeviceMemoryError(f"{found.missing}. {found.remedy}.{tried}")
