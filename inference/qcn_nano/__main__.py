"""`python -m qcn_nano`: the whole recipe, or one stage of it; finished stages are not repeated."""

import argparse
from pathlib import Path

from qcn_nano import stages


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m qcn_nano", description=__doc__)
    names = ["corpus", "tokenizer", "pack", "train", "evaluate", "ship", "all"]
    parser.add_argument("stage", choices=names)
    parser.add_argument(
        "--work", type=Path, default=Path(".cache/qcn-nano"), help="folder for what is built"
    )
    parser.add_argument("--name", choices=["tenth", "full"], default="full", help="which run")
    parser.add_argument("--tokens", type=int, default=stages.TOKENS, help="tokens of the full run")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    chosen = parse_arguments()
    work = chosen.work
    if chosen.stage == "corpus":
        stages.corpus_stage(work)
    elif chosen.stage == "tokenizer":
        stages.tokenizer_stage(work)
    elif chosen.stage == "pack":
        stages.pack_stage(work)
    elif chosen.stage == "train":
        stages.train_stage(work, chosen.name, chosen.tokens)
    elif chosen.stage == "evaluate":
        stages.evaluate_stage(work, chosen.name)
    elif chosen.stage == "ship":
        stages.ship_stage(work)
    else:
        stages.corpus_stage(work)
        for name in ("tenth", "full"):
            stages.train_stage(work, name, chosen.tokens)
            stages.evaluate_stage(work, name)
        stages.ship_stage(work)


if __name__ == "__main__":
    main()
