"""What a piece of code launches on a device, on a GPU or interpreted."""

from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves


class Launches(TorchDispatchMode):
    """Notes Triton's kernels and torch's operations by name, while it is entered.

    Operations that take memory, or look at it in another shape, launch nothing and are left out.
    """

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        """Begin to note."""
        # Whoever imports this may not import Triton: so the import is here.
        from qcn_kernels.launch import Kernel
        from triton.runtime.interpreter import InterpretedFunction

        for kind, name in ((InterpretedFunction, "run"), (Kernel, "launch")):
            self._patch.setattr(kind, name, self._noting(getattr(kind, name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *args: Any) -> None:
        """Note no more."""
        super().__exit__(*args)  # type: ignore[no-untyped-call]
        self._patch.undo()

    def _noting(self, run: Any) -> Any:
        def noting(kernel: Any, *args: Any, **named: Any) -> Any:
            self.names.append(kernel.fn.__name__)
            with _disable_current_modes():  # the interpreter's own are none
                return run(kernel, *args, **named)

        return noting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note it."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if "empty" not in name and (func._schema.is_mutable or _is_new(result, (args, kwargs))):
            self.names.append(name)
        return result


def _is_new(result: Any, given: Any) -> bool:
    """Whether a result lies elsewhere than what was given."""
    known = {_memory(x) for x in tree_leaves(given) if isinstance(x, Tensor)}
    return not {_memory(x) for x in tree_leaves(result) if isinstance(x, Tensor)} <= known


def _memory(x: Tensor) -> int:
    storage: torch.UntypedStorage = x.untyped_storage()
    return storage.data_ptr()
