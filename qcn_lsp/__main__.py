"""`qcn-lsp`: the language server on standard input and output."""

import argparse
import gc
import sys
from collections.abc import Sequence
from importlib import metadata


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the client leaves; returns the exit code: 0 after `shutdown`, else 1."""
    parser = argparse.ArgumentParser(
        prog="qcn-lsp",
        description="Local AI language server. Speaks the Language Server Protocol on standard "
        "input and output; an editor starts it. Settings come from the editor: see "
        "docs/settings.md. The log goes to standard error.",
    )
    parser.add_argument(
        "--stdio", action="store_true", help="accepted because some editors add it; the only way"
    )
    parser.add_argument(
        "--version", action="version", version=f"qcn-lsp {metadata.version('qcn-lsp')}"
    )
    parser.parse_args(argv)

    # What is imported stays; looking through it for garbage is a quarter of the time to start.
    gc.disable()
    from qcn_lsp.lifecycle import serve_stdio
    from qcn_lsp.log import set_up_log
    from qcn_lsp.server import create_server

    server = create_server()
    set_up_log(server)
    gc.freeze()
    gc.enable()
    return serve_stdio(server)


if __name__ == "__main__":
    sys.exit(main())
