"""The words and options of every command. Consumes the command line, produces a namespace; imports nothing heavy."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from ddpo import __version__

WITH_WORDS = ("train", "submit", "compare", "eval", "simulate", "plan", "serve-reward")  # commands that take key=value


def read(arguments: list[str] | None) -> argparse.Namespace:
    """Parse; words after an option (`train demo --check lag=1`) count as well, which argparse alone refuses."""
    options, rest = _parser().parse_known_args(arguments)
    if options.command not in WITH_WORDS or any(word.startswith("-") for word in rest):
        return _parser().parse_args(arguments)
    options.words += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddpo",
        description="Fine-tune a text-to-image diffusion model on a reward (DDPO), on Ray or in one process.",
    )
    parser.add_argument("--version", action="version", version=f"ddpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_submit(commands)
    _add_steering(commands)
    _add_sample(commands)
    _add_publish(commands)
    _add_compare(commands)
    _add_train_aesthetic(commands)
    _add_eval(commands)
    _add_simulate(commands)
    _add_plan(commands)
    _add_ledger(commands)
    _add_serve_reward(commands)
    _add_check_reward(commands)
    _add_convert(commands)
    commands.add_parser("recipes", help="list the recipes that ship with the program")
    return parser


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train", help="run a recipe or run file",
        usage="ddpo train RUN.toml [table.key=value ...] [--check] [--resume [STEP|auto]] [--in-process] "
              "[--runs FOLDER|URI]",
    )
    train.add_argument("words", nargs="*", metavar="RUN.toml table.key=value",
                       help="a recipe's name or a run file, and what to change in it, e.g. learner.lr=1e-4")
    train.add_argument("--check", action="store_true", help="print the resolved run and its arithmetic, then stop")
    train.add_argument("--resume", nargs="?", const="", metavar="STEP",
                       help="go on from the newest whole checkpoint of this run, or from that of STEP; `auto`: go on "
                            "where there is such a run, else start it")
    train.add_argument("--in-process", action="store_true", help="everything in this process, without Ray")
    train.add_argument("--runs", default="", metavar="FOLDER|URI", help="where run folders are, such as "
                       "s3://bucket/runs (DDPO_RUNS, else runs; of a submitted job ~/ddpo-runs)")


def _add_submit(commands: argparse._SubParsersAction) -> None:
    submit = commands.add_parser(
        "submit", help="run a recipe or run file as a job of a Ray cluster",
        usage="ddpo submit RUN.toml [table.key=value ...] [--address URL] [--follow] [--runs FOLDER|URI]",
    )
    submit.add_argument("words", nargs="+", metavar="RUN.toml table.key=value", help="as of `ddpo train`")
    submit.add_argument("--follow", action="store_true", help="print what it prints until it ends, with its exit code")
    submit.add_argument("--runs", default="", metavar="FOLDER|URI", help="where run folders are, on the cluster or, "
                        "such as s3://bucket/runs, outside it (DDPO_RUNS there, else ~/ddpo-runs)")
    _add_address(submit)


def _add_steering(commands: argparse._SubParsersAction) -> None:
    scale = commands.add_parser("scale", help="give the pools of a running run more workers or fewer")
    scale.add_argument("run", metavar="RUN", help="its name")
    scale.add_argument("wishes", nargs="*", metavar="POOL=COUNT",
                       help="samplers=4, or LOW..HIGH for a pool that sizes itself; none shows how the pools stand")
    status = commands.add_parser("status", help="how a running run stands: step, reward, time left, pools")
    status.add_argument("run", nargs="?", default="", metavar="RUN", help="its name; none lists the runs")
    status.add_argument("--watch", action="store_true", help="again and again, until it ends")
    logs = commands.add_parser("logs", help="what a submitted run has printed")
    logs.add_argument("run", metavar="RUN", help="its name")
    logs.add_argument("--follow", action="store_true", help="go on until it ends, with its exit code")
    stop = commands.add_parser("stop", help="have a running run end after the step in hand, with a checkpoint")
    stop.add_argument("run", metavar="RUN", help="its name")
    for command in (scale, status, logs, stop):
        _add_address(command)


def _add_address(command: argparse.ArgumentParser) -> None:
    command.add_argument("--address", default="", metavar="URL", help="of the cluster's dashboard, such as "
                         "http://head:8265, from anywhere; HOST:PORT of its head, from one of its own machines")


def _add_sample(commands: argparse._SubParsersAction) -> None:
    sample = commands.add_parser("sample", help="draw pictures with a checkpoint")
    sample.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder's newest; or its URI")
    sample.add_argument("prompts", nargs="+", metavar="PROMPT", help='for example "a cat"')
    sample.add_argument("--out", type=Path, default=Path("samples"), metavar="FOLDER", help="where to (samples)")
    sample.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the first image (0)")
    sample.add_argument("--count", type=_whole(1), default=1, metavar="N", help="images per prompt (1)")
    sample.add_argument("--steps", type=_whole(1), default=None, metavar="N", help="denoising steps (those of the run)")


def _add_publish(commands: argparse._SubParsersAction) -> None:
    publish = commands.add_parser("publish", help="make a folder to give away: weights, card, pictures; and upload it")
    publish.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder's newest; or its URI")
    publish.add_argument("--out", type=Path, metavar="FOLDER", help="where to (published/NAME-STEP)")
    publish.add_argument("--push-to-hub", default="", metavar="OWNER/NAME", help="upload it, for you alone to read")
    publish.add_argument("--public", action="store_true", help="... for everybody to read")


def _add_compare(commands: argparse._SubParsersAction) -> None:
    compare = commands.add_parser(
        "compare", help="run variants over seeds and draw reward against reward queries",
        usage="ddpo compare COMPARISON [table.key=value ...] [seeds=[0,1,2]] [--out FOLDER] [--in-process]",
    )
    compare.add_argument("words", nargs="+", metavar="COMPARISON table.key=value",
                         help="a comparison's name or file (`algorithms` and `staleness` ship), and what to change in "
                              "all its runs")
    compare.add_argument("--out", type=Path, metavar="FOLDER", help="where its runs go (runs/compare-NAME)")
    compare.add_argument("--in-process", action="store_true", help="everything in this process, without Ray")


def _add_train_aesthetic(commands: argparse._SubParsersAction) -> None:
    aesthetic = commands.add_parser("train-aesthetic", help="train an aesthetic reward of your own from ratings")
    aesthetic.add_argument("ratings", type=Path, metavar="RATINGS", help="a .csv with columns image,rating, or AVA.txt")
    aesthetic.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="where the rated images are")
    aesthetic.add_argument("--model", default="openai/clip-vit-large-patch14", metavar="CLIP",
                           help="folder or hub name of the CLIP that looks (openai/clip-vit-large-patch14)")
    aesthetic.add_argument("--out", type=Path, default=Path("aesthetic-head"), metavar="FOLDER",
                           help="where the head and the embeddings go (aesthetic-head)")
    aesthetic.add_argument("--hidden", type=_whole(1), default=64, metavar="N", help="width of the hidden layer (64)")
    aesthetic.add_argument("--epochs", type=_whole(1), default=200, metavar="N", help="passes over the ratings (200)")
    aesthetic.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the split and the training (0)")
    aesthetic.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the CLIP (auto)")
    aesthetic.add_argument("--skip", action="store_true", help="leave out images that are missing or cannot be read")


def _add_eval(commands: argparse._SubParsersAction) -> None:
    suites = "training, other-animals, unseen-animals, objects, unseen-activities, new-pairs, counting, untaught-scenes"
    parser = commands.add_parser(
        "eval", help="compare base and tuned from the same noise, on prompts old and new",
        usage="ddpo eval CHECKPOINT [rewards.NAME.key=value ...] [--suite NAME,...] [--images N] [--seed N] "
              "[--rewards KIND,...] [--deploy-steps N] [--out FOLDER]",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder's newest; or its URI")
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


def _add_simulate(commands: argparse._SubParsersAction) -> None:
    simulate = commands.add_parser(
        "simulate", help="what a run would do on more machines, by its own loop and pools on virtual time",
        usage="ddpo simulate RUN.toml [table.key=value ...] [--time STAGE=SECONDS ...] [--samplers N,...]"
              " [--rewards POOL=N,... ...] [--like RUN] [--call SECONDS] [--bandwidth BYTES]",
    )
    simulate.add_argument("words", nargs="+", metavar="RUN.toml table.key=value", help="as of `ddpo train`")
    _add_times(simulate)
    simulate.add_argument("--samplers", default="", metavar="N,...", help="how many, one line each: 1,8,64, or 1..1024 "
                          "for 1, 2, 4, ... 1024 (those of the run)")
    simulate.add_argument("--rewards", action="append", default=[], metavar="POOL=N,...",
                          help="how many workers of a pool, as --samplers: one line for each of both; for more pools "
                               "again")


def _add_times(command: argparse.ArgumentParser) -> None:
    command.add_argument("--time", action="append", default=[], metavar="STAGE=SECONDS",
                         help="sample and each reward: of one chunk; learn: of one step; for every stage of the run")
    command.add_argument("--like", type=Path, metavar="RUN", help="take the stages' times from this run folder, but "
                         "for those given")
    command.add_argument("--call", type=_seconds, default=0.001, metavar="SECONDS",
                         help="of the driver for one call of a worker (0.001)")
    command.add_argument("--bandwidth", type=_rate, default=1e9, metavar="BYTES", help="a second into a node (1e9)")


def _add_plan(commands: argparse._SubParsersAction) -> None:
    plan = commands.add_parser(
        "plan", help="before any GPU is paid for: who goes where, memory, network, time, what a cluster lacks",
        usage="ddpo plan RUN.toml [table.key=value ...] [--time STAGE=SECONDS ...] [--like RUN] "
              "[--address URL | --cluster FILE.yaml] [--call SECONDS] [--bandwidth BYTES] [--json]",
        epilog="Exit codes: 0 the run fits (or no cluster was given, or it may start more "
               "nodes), 3 the cluster lacks something, 2 wrong input.",
    )
    plan.add_argument("words", nargs="+", metavar="RUN.toml table.key=value", help="as of `ddpo train`")
    _add_times(plan)
    where = plan.add_mutually_exclusive_group()
    where.add_argument("--address", default="", metavar="URL", help="the dashboard of a cluster, to compare with")
    where.add_argument("--cluster", type=Path, metavar="FILE.yaml",
                       help="compare with what this file may start, of `ray up` or KubeRay")
    plan.add_argument("--json", action="store_true", help="for programs")


def _add_ledger(commands: argparse._SubParsersAction) -> None:
    audit = commands.add_parser("audit", help="add up what became of every image of a run")
    audit.add_argument("run", metavar="RUN", help="a run folder, such as runs/demo, or its URI")
    audit.add_argument("--json", action="store_true", help="for programs")
    replay = commands.add_parser("replay", help="draw any image of a run again, bit for bit")
    replay.add_argument("run", metavar="RUN", help="a run folder, such as runs/demo, or its URI")
    replay.add_argument("image", type=_whole(0), metavar="IMAGE", help="its number in the run's ledger.jsonl")
    replay.add_argument("--out", type=Path, metavar="FILE.png", help="where to (NAME-IMAGE.png)")


def _add_serve_reward(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "serve-reward", help="score images for runs elsewhere, over HTTP",
        usage="ddpo serve-reward KIND [key=value ...] [--host HOST] [--port N] [--token-file FILE] [--images N] "
              "[--side N] [--megabytes N] [--room N]",
    )
    parser.add_argument("kind", metavar="KIND", help="of reward, as in [rewards.NAME], for example alignment")
    parser.add_argument("words", nargs="*", metavar="key=value", help="its options, e.g. model=FOLDER, timeout=300")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others need a token (127.0.0.1)")
    parser.add_argument("--port", type=_whole(0), default=8000, metavar="N", help="to listen on; 0 takes any (8000)")
    parser.add_argument("--token-file", default="", metavar="FILE", help="with the token (DDPO_REWARD_TOKEN)")
    parser.add_argument("--images", type=_whole(1), default=256, metavar="N", help="of one request, at most (256)")
    parser.add_argument("--side", type=_whole(1), default=2048, metavar="N", help="of an image, in pixels (2048)")
    parser.add_argument("--megabytes", type=_whole(1), default=128, metavar="N", help="of one request (128)")
    parser.add_argument("--room", type=_whole(1), default=8, metavar="N", help="requests in hand and waiting (8)")


def _add_check_reward(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("check-reward", help="test a server of rewards, ours or yours, against the protocol")
    parser.add_argument("url", metavar="URL", help="for example http://scorer:8000")
    parser.add_argument("--token-file", default="", metavar="FILE", help="with the token (DDPO_REWARD_TOKEN)")


def _add_convert(commands: argparse._SubParsersAction) -> None:
    convert = commands.add_parser("convert", help="make a run file of a configuration of TRL or ddpo-pytorch")
    convert.add_argument("config", metavar="CONFIG", help="DDPOConfig's fields as .json or .yaml; or ddpo-pytorch's "
                         "config, FILE.py or FILE.py:FUNCTION")
    convert.add_argument("--gpus", type=_whole(1), default=1, metavar="N", help="that it was written for (1)")


def _seconds(text: str) -> float:
    return _real(text, lambda value: value >= 0, "seconds, 0 or more")


def _rate(text: str) -> float:
    return _real(text, lambda value: value > 0, "bytes a second, more than 0")


def _real(text: str, fits: Callable[[float], bool], what: str) -> float:
    """A finite number; raises argparse's error where it is none, or does not fit."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and fits(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}")
    return value


def _whole(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {low} or more")
        return int(text)

    return read
