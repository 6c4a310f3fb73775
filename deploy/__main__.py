"""The command line: `ddpo`, equally `python -m deploy`.

Exit codes: 0 done, 2 wrong input, 1 anything else, 130 interrupted. No torch is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ddpo import __version__
from ddpo.errors import DdpoError, InputError, Interrupted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddpo",
        description="Fine-tune a text-to-image diffusion model on a reward (DDPO), on Ray or in one process.",
    )
    parser.add_argument("--version", action="version", version=f"ddpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_sample(commands)
    _add_eval(commands)
    commands.add_parser("recipes", help="list the recipes that ship with the program")
    return parser


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train", help="run a recipe or run file",
        usage="ddpo train RUN.toml [table.key=value ...] [--check] [--resume [STEP]] [--in-process] [--runs FOLDER]",
    )
    train.add_argument("words", nargs="*", metavar="RUN.toml table.key=value",
                       help="a recipe's name or a run file, and what to change in it, e.g. learner.lr=1e-4")
    train.add_argument("--check", action="store_true", help="print the resolved run and its arithmetic, then stop")
    train.add_argument("--resume", nargs="?", const="", metavar="STEP",
                       help="go on from the newest whole checkpoint of this run, or from that of STEP")
    train.add_argument("--in-process", action="store_true", help="everything in this process, without Ray")
    train.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="where run folders are (runs)")


def _add_sample(commands: argparse._SubParsersAction) -> None:
    sample = commands.add_parser("sample", help="draw pictures with a checkpoint")
    sample.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run folder's newest")
    sample.add_argument("prompts", nargs="+", metavar="PROMPT", help='for example "a cat"')
    sample.add_argument("--out", type=Path, default=Path("samples"), metavar="FOLDER", help="where to (samples)")
    sample.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the first image (0)")
    sample.add_argument("--count", type=_whole(1), default=1, metavar="N", help="images per prompt (1)")
    sample.add_argument("--steps", type=_whole(1), default=None, metavar="N", help="denoising steps (those of the run)")


def _add_eval(commands: argparse._SubParsersAction) -> None:
    suites = "training, other-animals, unseen-animals, objects, unseen-activities, new-pairs, counting, untaught-scenes"
    parser = commands.add_parser(
        "eval", help="compare base and tuned from the same noise, on prompts old and new",
        usage="ddpo eval CHECKPOINT [rewards.NAME.key=value ...] [--suite NAME,...] [--images N] [--seed N] "
              "[--rewards KIND,...] [--deploy-steps N] [--out FOLDER]",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run folder's newest")
    parser.add_argument("words", nargs="*", metavar="rewards.NAME.key=value",
                        help="what to measure with, e.g. rewards.clip.kind=clipscore; also policy.base, policy.device")
    parser.add_argument("--suite", default="training", metavar="NAME,...",
                        help=f"{suites}; all that apply: all; or a .txt or .jsonl file of prompts (training)")
    parser.add_argument("--images", type=_whole(1), default=2, metavar="N", help="of every prompt and policy (2)")
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the noise (0)")
    parser.add_argument("--rewards", default="", metavar="KIND,...", help="measure these besides those of the run")
    parser.add_argument("--deploy-steps", type=_whole(1), default=None, metavar="N",
                        help="of the deployment sampler, eta 0 (half of the run's, at most 20)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to (RUN/eval/STEP)")


def _whole(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {low} or more")
        return int(text)

    return read


def _train(options: argparse.Namespace) -> None:
    from deploy.prepare import prepare, render
    from deploy.recipes import find

    words = list(options.words)
    if options.resume and not options.resume.isdigit():  # `--resume demo` and `--resume lag=1` give no STEP
        words, options.resume = [options.resume, *words], ""
    recipe = next((word for word in words if "=" not in word), None)
    if recipe is None:
        raise InputError("train needs a recipe or run file, for example `ddpo train demo`; `ddpo recipes` lists them.")
    words.remove(recipe)
    prepared = prepare(find(recipe, words))
    if options.check:
        print(render(prepared))
        return
    from deploy.train import train

    folder = train(prepared, options.runs, options.resume, options.in_process)
    print(f"\nReport: {folder.path / 'report.html'}")


def _sample(options: argparse.Namespace) -> None:
    from deploy.sample import sample

    for path in sample(options.checkpoint, options.prompts, options.out, options.seed, options.count, options.steps):
        print(path)


def _eval(options: argparse.Namespace) -> None:
    from deploy.evaluation import Request, evaluate

    page = evaluate(Request(
        options.checkpoint, options.words, options.suite, options.images, options.seed, options.rewards,
        options.deploy_steps, options.out,
    ))
    print(f"\nEvaluation: {page}")


def _recipes(options: argparse.Namespace) -> None:
    from deploy.recipes import names, summary

    width = max(len(name) for name in names())
    for name in names():
        print(f"{name:<{width}}  {summary(name)}")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """Parse; words after an option (`train demo --check lag=1`) count as well, which argparse alone refuses."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.command not in ("train", "eval") or any(word.startswith("-") for word in rest):
        return parser.parse_args(arguments)
    options.words += rest
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    code = _run(_options(arguments))
    if arguments is None:  # the process ends here: a late Ctrl-C must not turn its exit code into another
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return code


def _run(options: argparse.Namespace) -> int:
    from ddpo.source import check_root
    from deploy.cluster import QUIET

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        check_root()
        {"train": _train, "sample": _sample, "eval": _eval, "recipes": _recipes}[options.command](options)
    except Interrupted as error:
        return _end(str(error), 130)
    except (KeyboardInterrupt, SystemExit):  # while Ray starts, SIGTERM raises the latter
        return _end("interrupted.", 130)
    except InputError as error:
        return _end(str(error), 2)
    except DdpoError as error:
        return _end(str(error), 1)
    return 0


def _end(message: str, code: int) -> int:
    print(f"ddpo: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
