"""The command line: `ddpo`, equally `python -m deploy`.

Exit codes: 0 done, or ended by `ddpo stop`, 2 wrong input, 1 anything else, 130 interrupted. No torch is imported
before a command needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ddpo.errors import DdpoError, InputError, Interrupted, Stopped
from deploy.options import read


def _train(options: argparse.Namespace) -> None:
    from deploy.prepare import check_deadlines, prepare, render
    from deploy.recipes import find, named

    words = list(options.words)
    # `--resume demo` and `--resume lag=1` give no STEP
    if options.resume and options.resume != "auto" and not options.resume.isdigit():
        words, options.resume = [options.resume, *words], ""
    recipe, changes = named(
        words, "train needs a recipe or run file, for example `ddpo train demo`; `ddpo recipes` lists them."
    )
    run = find(recipe, changes)
    here = Path(run.policy.base).expanduser().is_dir()  # then its weights are looked for; the hub's are large
    prepared = prepare(run, weights=here or not options.check)
    if options.check:
        check_deadlines(prepared)
        print(render(prepared))
        return
    from deploy.jobs.job import root
    from deploy.storage import home
    from deploy.train import train

    with home(options.runs or root(), prepared.run.name, options.resume) as runs:
        folder = train(prepared, runs, options.resume, options.in_process)
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


def _publish(options: argparse.Namespace) -> None:
    from deploy.publish import publish

    for line in publish(options.checkpoint, options.out, options.push_to_hub, options.public):
        print(line)


def _compare(options: argparse.Namespace) -> None:
    from deploy.compare import compare
    from deploy.recipes import named

    name, changes = named(options.words, "compare needs a comparison, for example `ddpo compare algorithms`.")
    print(f"\nComparison: {compare(name, changes, options.out, options.in_process)}")


def _train_aesthetic(options: argparse.Namespace) -> None:
    from deploy.aesthetic import train

    print(train(options))


def _submit(options: argparse.Namespace) -> int:
    from deploy.jobs import following, submission
    from deploy.recipes import find, named, names

    recipe, changes = named(options.words, "submit needs a recipe or run file, for example `ddpo submit demo`.")
    run = find(recipe, changes)
    words = [recipe if recipe in names() else submission.inside(Path(recipe)), *changes, "--resume", "auto"]
    submission.check(run)
    client = submission.connect(options.address)
    job = submission.submit(client, run, [*words, *(["--runs", options.runs] if options.runs else [])])
    print(f"Submitted {run.name} as job {job}. `ddpo logs {run.name} --follow`, `ddpo status {run.name}`, "
          f"`ddpo stop {run.name}`; dashboard: {submission.dashboard(options.address)}", file=sys.stderr, flush=True)
    return following.follow(client, job) if options.follow else 0


def _logs(options: argparse.Namespace) -> int:
    from deploy.jobs import following, submission

    client = submission.connect(options.address)
    job = submission.newest(client, options.run).submission_id
    if options.follow:
        return following.follow(client, job)
    following.printed(client, job)
    return 0


def _steer(options: argparse.Namespace) -> int:
    from deploy.jobs.steer import steer

    return steer(options)


def _simulate(options: argparse.Namespace) -> None:
    from deploy.sweep import table

    for line in table(options):
        print(line, flush=True)


def _plan(options: argparse.Namespace) -> int:
    from deploy.planning.plan import plan
    from deploy.planning.table import render

    found = plan(options)
    print(json.dumps(asdict(found), indent=1) if options.json else render(found), flush=True)
    return 3 if found.lacks else 0


def _audit(options: argparse.Namespace) -> None:
    from deploy.audit import audit, render

    found = audit(options.run)
    print(json.dumps(asdict(found), indent=1) if options.json else render(found), flush=True)
    found.check()


def _replay(options: argparse.Namespace) -> None:
    from deploy.replay import render, replay

    found = replay(options.run, options.image, options.out)
    print(render(found), flush=True)
    found.check()


def _serve_reward(options: argparse.Namespace) -> None:
    from deploy.serve import serve

    serve(options)


def _check_reward(options: argparse.Namespace) -> None:
    from deploy.serve import check_server

    check_server(options.url, options.token_file)


def _convert(options: argparse.Namespace) -> None:
    from deploy.convert import convert

    print(convert(options.config, options.gpus), end="")


def _recipes(options: argparse.Namespace) -> None:
    from deploy.recipes import listing

    print(listing())


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "train": _train, "sample": _sample, "eval": _eval, "compare": _compare, "publish": _publish, "recipes": _recipes,
    "train-aesthetic": _train_aesthetic, "submit": _submit, "logs": _logs, "scale": _steer, "status": _steer,
    "stop": _steer, "simulate": _simulate, "audit": _audit, "replay": _replay,
    "plan": _plan, "convert": _convert, "serve-reward": _serve_reward, "check-reward": _check_reward,
}


WITH_PLACES = {  # what they read may be in a storage
    "sample": "checkpoint", "eval": "checkpoint", "publish": "checkpoint", "audit": "run", "replay": "run",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    code = _run(read(arguments))
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
        if place := WITH_PLACES.get(options.command):
            setattr(options, place, _here(getattr(options, place)))
        code = COMMANDS[options.command](options)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:  # the reader of `ddpo recipes | head` has gone; nothing more can be told to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Stopped as error:
        return _end(str(error), 0)
    except Interrupted as error:
        return _end(str(error), 130)
    except (KeyboardInterrupt, SystemExit):  # while Ray starts, SIGTERM raises the latter
        return _end("interrupted.", 130)
    except InputError as error:
        return _end(str(error), 2)
    except DdpoError as error:
        return _end(str(error), 1)
    return 0


def _here(place: str) -> Path:
    from deploy.storage import here

    return here(place)


def _end(message: str, code: int) -> int:
    print(f"ddpo: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
