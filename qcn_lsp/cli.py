"""The command `qcn`.

Exit codes: 0 done, 1 failed with a sentence on stderr, 2 wrong usage, 130 interrupted; `qcn scan`
and `qcn fix` have codes of their own. Nothing but the standard library is imported until the
subcommand is known.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    parser = _parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        parser.exit(2)
    options = parser.parse_args(argv)
    # What libraries log is not for the reader of a command's output; its errors are sentences.
    logging.getLogger().addHandler(logging.NullHandler())
    from qcn_lsp.commands.errors import CommandError
    from qcn_lsp.engine.messages import EngineUnavailable

    try:
        code = _run(options)
        print(end="", flush=True)  # while a failure to write can still be told
    except (CommandError, EngineUnavailable) as problem:
        print(f"qcn: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` say, has had enough
        _drop_output()
        return 0
    except OSError as problem:  # a full disk
        where = f"{problem.filename}: " if problem.filename else ""
        print(f"qcn: {where}{problem.strerror or problem}", file=sys.stderr)
        _drop_output()
        return 1
    return code


def _drop_output() -> None:
    """Let what is still to be written go nowhere, lest Python complain of it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "demo":
            from qcn_lsp.commands import demo, endpoint

            return demo.run(options.path, endpoint.server_options(*_server(options)))
        case "complete":
            from qcn_lsp.commands import complete, endpoint

            server_options = endpoint.server_options(*_server(options), beside=options.beside)
            return complete.run(options.place, server_options, as_json=options.json)
        case "fix":
            from qcn_lsp.commands import endpoint, fix

            engine_options = endpoint.engine_options(
                options.engine_url, options.engine_token_file, options.beside
            )
            return fix.run(
                options.what,
                engine_options,
                model=options.model,
                beside=endpoint.neighbour(options.beside),
                apply=options.apply,
                exploit=options.exploit,
                as_json=options.json,
            )
        case "context":
            from qcn_lsp.commands import context

            if options.what[:1] == ["purge"]:
                return context.purge(_one_path(options.what[1:]), as_json=options.json)
            if options.open:
                from qcn_lsp.commands import context_page

                return context_page.run(_one_path(options.what), options.tokens)
            return context.run(_one_path(options.what), options.tokens, as_json=options.json)
        case "eval":
            from qcn_lsp.commands import eval as evaluation

            wanted = evaluation.Wanted(options.model, options.limit, options.overlay)
            return evaluation.run(options.path, wanted, as_json=options.json)
        case "models":
            return _run_models(options)
        case "bench":
            from qcn_lsp.commands import bench

            measured = bench.Wanted(
                options.model,
                options.synthetic,
                options.device,
                options.device_memory_mib,
                options.kv_cache_dtype,
                options.lengths,
                options.output,
            )
            return bench.run(measured, as_json=options.json)
        case "scan":
            from qcn_lsp.commands import scan

            return scan.run(options.paths, options.format, options.fail_on)
        case "doctor":
            from qcn_lsp.commands import doctor

            return doctor.run(as_json=options.json)
    return _run_engine(options)


def _server(options: argparse.Namespace) -> tuple[str | None, str | None, Path | None]:
    return options.model, options.engine_url, options.engine_token_file


def _run_models(options: argparse.Namespace) -> int:
    from qcn_lsp.commands import models

    if options.action == "get":
        return models.get(options.name, options.folder, options.gguf)
    return models.convert(options.origin, options.folder, options.experts)


def _run_engine(options: argparse.Namespace) -> int:
    from qcn_lsp.commands import endpoint, engine

    where = engine.Where(options.socket, options.host, options.port, options.token_file)
    match options.action:
        case "start":
            beside = endpoint.neighbour(options.beside)
            return engine.start(options.model, where, beside=beside, foreground=options.foreground)
        case "stop":
            return engine.stop(where)
    return engine.status(where, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qcn",
        description="Completes code and fixes its weaknesses, by a model on this machine: the "
        "commands beside the language server qcn-lsp. `qcn COMMAND --help` tells more of each.",
    )
    parser.add_argument("--version", action="version", version=f"qcn {metadata.version('qcn-lsp')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_complete(commands)
    _add_context(commands)
    _add_fix(commands)
    _add_eval(commands)
    _add_engine(commands)
    _add_models(commands)
    _add_bench(commands)
    _add_scan(commands)
    _add_doctor(commands)
    return parser


def _add_demo(commands: _Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="complete code at several places of a real repository",
        description="Start the language server as an editor does, delete the rest of a line at "
        "several places of a repository, and show what is suggested for it. Nothing is written.",
    )
    demo.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="PATH",
        help="the repository (default: this one, or qcn-lsp's own source)",
    )
    _add_model(demo)
    _add_endpoint(demo)


def _add_complete(commands: _Commands) -> None:
    complete = commands.add_parser(
        "complete",
        help="print one completion",
        description="Print what the language server suggests at one place of a file.",
    )
    complete.add_argument(
        "place",
        metavar="FILE:LINE:COL",
        help="line and column as editors show them: both count from 1, columns in characters; "
        "the text goes in before the character at COL",
    )
    _add_model(complete)
    _add_beside(complete)
    _add_endpoint(complete)
    _add_json(complete)


def _add_context(commands: _Commands) -> None:
    context = commands.add_parser(
        "context",
        help="show what the model sees of a repository",
        usage="qcn context [-h] [--tokens N] [--json | --open] [purge] [PATH]",
        description="Lay out a repository for the model as the language server does, have it read, "
        "and show what stands where, what had no room, and what was left out, with the reasons. "
        "With `purge`: have the engines of this machine forget all that they ever read of it, and "
        "remove it from disk.",
    )
    context.add_argument(
        "what",
        nargs="*",
        metavar="[purge] [PATH]",
        help="the folder (default: this one; one of the name purge is ./purge)",
    )
    context.add_argument(
        "--tokens",
        type=_tokens,
        default=0,
        metavar="N",
        help="as the setting qcn.context.tokens; a small model such as qcn-nano reads no "
        "repository without it",
    )
    output = context.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--open", action="store_true", help="draw it, live, in the browser")


def _add_fix(commands: _Commands) -> None:
    fix = commands.add_parser(
        "fix",
        help="fix security findings, with evidence",
        description="Look for a fix of each finding, the rule's own first, then a model's; judge "
        "it; and print it as a diff, with what it has shown and what was not checked. Exit codes: "
        "0 each finding has a fix, 1 one has no acceptable fix, or there was an error, 2 wrong "
        "usage, 3 a file or folder could not be scanned; the others are fixed all the same.",
    )
    fix.add_argument(
        "what",
        metavar="FINDING|PATH",
        help="FILE:LINE:COL as `qcn scan` prints it, FILE:LINE or FILE:LINE:RULE; or a file or "
        "folder, for all its findings",
    )
    fix.add_argument("--apply", action="store_true", help="write the fixes into the files")
    fix.add_argument(
        "--exploit",
        action="store_true",
        help="also have the model write a test that exploits the weakness, and run it in the "
        "sandbox before and after",
    )
    fix.add_argument(
        "--model",
        default="qcn-nano",
        metavar="DIR",
        help="checkpoint folder of a model that chats (default: qcn-nano, which does not)",
    )
    _add_beside(fix)
    _add_endpoint(fix)
    _add_json(fix)


def _add_eval(commands: _Commands) -> None:
    evaluation = commands.add_parser(
        "eval",
        help="measure whether the repository helps a model",
        description="Complete lines that use names defined in other files of a repository, with "
        "and without the repository in front, and by a chat where the model can, and show how "
        "often they come out as they were.",
    )
    evaluation.add_argument(
        "path", nargs="?", type=Path, metavar="PATH", help="the repository (default: this one)"
    )
    evaluation.add_argument(
        "--overlay",
        action="store_true",
        help="compare also the formats in which a change can stand behind what it changes",
    )
    evaluation.add_argument(
        "--limit",
        type=_count,
        default=30,
        metavar="N",
        help="lines for each part (default: 30)",
    )
    _add_checkpoint(evaluation)
    _add_json(evaluation)


def _add_scan(commands: _Commands) -> None:
    scan = commands.add_parser(
        "scan",
        help="find weaknesses and secrets in source files",
        description="Look for weaknesses and secrets in folders, as far as their ignore rules let "
        "one, and in files that are named. Exit codes: 0 nothing was found, 1 something was, 2 "
        "wrong usage, 3 a file or folder could not be scanned.",
    )
    scan.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="folders and files (default: .)"
    )
    scan.add_argument(
        "--format", choices=("text", "json", "sarif"), default="text", help="SARIF is of 2.1.0"
    )
    scan.add_argument(
        "--fail-on",
        choices=("error", "warning", "note"),
        default="note",
        help="the least severity of a finding that makes the exit code 1 (default: note)",
    )


def _add_doctor(commands: _Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="say what is wrong on this machine, and the remedy",
        description="Say what this machine has, what is missing, and what to do about it; and what "
        "the published models could do on it at best, before anything is downloaded.",
    )
    _add_json(doctor)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text)):
        raise argparse.ArgumentTypeError("must be a number from 1 to 999999")
    return int(text)


def _tokens(text: str) -> int:
    """Return what the setting `context.tokens` takes."""
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) <= 262_144):
        raise argparse.ArgumentTypeError("must be a number from 0 to 262144")
    return int(text)


def _add_engine(commands: _Commands) -> None:
    engine = commands.add_parser("engine", help="start, stop or show the engine by hand")
    actions = engine.add_subparsers(dest="action", required=True, metavar="start|stop|status")
    start = actions.add_parser(
        "start",
        help="start the engine and wait until it is ready",
        description="Start the engine of a model where editors look for it, or at an address of "
        "your choice, and wait until it is ready.",
    )
    _add_checkpoint(start)
    _add_beside(start)
    start.add_argument(
        "--foreground", action="store_true", help="run it in this terminal until it is ended"
    )
    stop = actions.add_parser(
        "stop",
        help="end the engines of this user",
        description="End the engines that editors have started or would find, of every model; or "
        "the one at an address.",
    )
    status = actions.add_parser(
        "status",
        help="show the engines of this user",
        description="Show the engines that editors would find, of every model; or the one at an "
        "address.",
    )
    _add_json(status)
    for parser in (start, stop, status):
        where = parser.add_argument_group("an engine elsewhere than where windows look for it")
        where.add_argument("--socket", type=Path, metavar="PATH", help="a Unix socket")
        where.add_argument("--host", help="a loopback address (default: 127.0.0.1)")
        where.add_argument("--port", type=_port, metavar="N", help="a port; needs --token-file")
        where.add_argument(
            "--token-file", type=Path, metavar="F", help="the bearer token, made where missing"
        )


def _add_models(commands: _Commands) -> None:
    models = commands.add_parser(
        "models", help="get a checkpoint; convert one: experts to 4 bits, or from GGUF, GPTQ or AWQ"
    )
    actions = models.add_subparsers(dest="action", required=True, metavar="get|convert")
    get = actions.add_parser(
        "get",
        help="download a checkpoint from the Hugging Face Hub",
        description="Download a checkpoint's weights, in safetensors or one GGUF file, with the "
        "texts beside them, and nothing else; each file is compared with the Hub's digest of it. "
        "A download that was interrupted is finished by the same command. A token (HF_TOKEN) and "
        "another address of the Hub (HF_ENDPOINT) are taken from the environment.",
    )
    get.add_argument(
        "name",
        metavar="OWNER/NAME",
        help="as the Hub calls it, such as Qwen/Qwen3-Coder-Next-FP8; @REVISION behind it takes "
        "another revision than the newest",
    )
    get.add_argument("folder", type=Path, metavar="DST", help="a new folder for it")
    get.add_argument(
        "--gguf",
        metavar="PART",
        help="of several GGUF files the one with this in its name, such as Q4_K_M",
    )
    convert = actions.add_parser(
        "convert",
        help="copy a checkpoint with 4-bit experts, or a GGUF, GPTQ or AWQ one",
        description="Make a copy that the engine serves: of a bf16 or FP8 folder with its experts "
        "quantised to 4 bits, measured against the original; of GGUF, GPTQ or AWQ with the codes "
        "that were published. A copy that was interrupted is finished by the same command.",
    )
    convert.add_argument(
        "origin", type=Path, metavar="SRC", help="a checkpoint's folder, or a GGUF file"
    )
    convert.add_argument("folder", type=Path, metavar="DST", help="a new folder for the copy")
    convert.add_argument(
        "--experts", choices=["int4"], help="quantise experts that are stored as floats"
    )


def _add_bench(commands: _Commands) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure how fast a model is on this machine",
        description="Measure prefill, decode, the way from an edit to the first token, and a new "
        "window's first completion; beside each, how near it is to what the machine allows.",
    )
    _add_checkpoint(bench)
    bench.add_argument(
        "--synthetic",
        metavar="NAME",
        help="random weights in the shape of a model instead: qwen3-coder-next, qwen3.5-35b-a3b, "
        "qwen3.5-9b or qcn-nano, with -bf16 behind it; the first two also with -fp8 or -int4",
    )
    bench.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    bench.add_argument(
        "--device-memory-mib",
        type=int,
        default=0,
        metavar="N",
        help="take no more of the GPU's memory: as on a smaller card",
    )
    bench.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "fp8"),
        default="auto",
        help="what a GPU keeps keys and values in, as the setting qcn.engine.kvCacheDtype",
    )
    bench.add_argument(
        "--lengths", type=_count, nargs="+", metavar="N", help="tokens of the prompts"
    )
    bench.add_argument(
        "--output", type=Path, metavar="DIR", help="write bench.json and bench.svg there"
    )
    _add_json(bench)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="qcn-nano",
        metavar="DIR",
        help="checkpoint folder (default: qcn-nano, the embedded model)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="checkpoint folder (default: qcn-nano, the embedded model); with --engine-url the "
        "model's name there",
    )


def _add_beside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--beside",
        metavar="DIR",
        help="another model (of qcn.models.completion and qcn.models.chat the other one) for whose "
        "engine the GPU keeps room, where this command starts an engine",
    )


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    endpoint = parser.add_argument_group("another server than our engine")
    endpoint.add_argument(
        "--engine-url",
        metavar="URL",
        help="an OpenAI-compatible server, as the setting qcn.engine.url names it",
    )
    endpoint.add_argument(
        "--engine-token-file", type=Path, metavar="FILE", help="its bearer token, alone in a file"
    )


def _one_path(paths: Sequence[str]) -> Path | None:
    """Return the path, None where there is none."""
    from qcn_lsp.commands.errors import CommandError

    if len(paths) > 1:
        raise CommandError(f"one folder at a time: what is {paths[1]}?")
    return Path(paths[0]) if paths else None


def _port(text: str) -> int:
    """Return a port that can be asked for again: 0, which takes any, could not be found."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return int(text)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


if __name__ == "__main__":
    sys.exit(main())
