"""Runs as jobs of a Ray cluster, from anywhere that reaches its dashboard's address: submit, find again.

Consumes command lines, produces jobs; waits, with a deadline, for the dashboard to answer. No torch, and nothing of Ray
but its client of jobs: the machine need not be part of the cluster.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpo.config import Run
from ddpo.errors import InputError, WorkerError
from ddpo.source import ROOT
from deploy.jobs.following import follow, knock

LOCAL = "http://127.0.0.1:8265"  # Ray's dashboard where nothing else is said
SECONDS_TO_LEAVE = "3600"  # that Ray gives a job that it stops before it kills it; ours leave by checkpoints.notice
ANSWER = 60.0  # seconds between two bytes of an answer


def dashboard(address: str) -> str:
    """The URL as given, else as Ray's own commands find it."""
    found = address or told() or LOCAL
    return found if "://" in found else f"http://{found}"


def told() -> str:
    """What the environment says of a dashboard; "" where it says nothing. RAY_ADDRESS may be one, or that of a node."""
    node = os.environ.get("RAY_ADDRESS", "")
    return os.environ.get("RAY_API_SERVER_ADDRESS", "") or (node if is_url(node) else "")


def is_url(address: str) -> bool:
    """Whether it is of a dashboard."""
    return address.startswith(("http://", "https://"))


def connect(address: str) -> Any:
    """Ray's client of jobs; raises InputError where no dashboard answers, or it admits nobody without a token, or its
    Ray is another."""
    url = dashboard(address)
    try:
        knock(url)
    except (OSError, ValueError) as error:
        raise InputError(_absent(url, error)) from None
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.WARNING)  # else every file that is not uploaded is a line
    try:
        client: Any = JobSubmissionClient(url)
        client._do_request = functools.partial(client._do_request, timeout=ANSWER)  # for ever, else
        _check_version(url, client._do_request("GET", "/api/version").json()["ray_version"])
        client.list_jobs()
        return client
    except AuthenticationError as error:
        raise InputError(_shut(url, error)) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(_absent(url, error)) from None


def _absent(url: str, error: Exception) -> str:
    said = str(error).partition("\n")[0]
    return (
        f"no Ray dashboard answers at {url} ({type(error).__name__}: {said}). Give the cluster's with --address URL or "
        "RAY_API_SERVER_ADDRESS; where its port is not open to you, forward it: ssh -L 8265:localhost:8265 HEAD."
    )


def _shut(url: str, error: Exception) -> str:
    said = str(error).partition("\n")[0].rstrip(".")
    return (
        f"the cluster at {url} wants a token: {said}. Set RAY_AUTH_MODE=token and, in RAY_AUTH_TOKEN or the file that "
        "RAY_AUTH_TOKEN_PATH names (~/.ray/auth_token), the token with which the cluster was started; `ray "
        "get-auth-token` prints it there."
    )


def _check_version(url: str, theirs: str) -> None:
    import ray

    if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise InputError(
            f"the cluster at {url} runs Ray {theirs}, this program was made with {ray.__version__}: what it asks "
            "of Ray may not be there, or be something else. Make the environments of both from constraints.txt."
        )


def inside(path: Path) -> str:
    """The run file as the job will find it: jobs see what lies in the checkout, which is uploaded."""
    try:
        return path.resolve().relative_to(ROOT).as_posix()
    except ValueError:
        raise InputError(
            f"{path} lies outside {ROOT}, and a job is given that folder and nothing else. Copy the run file, and "
            "the rewards and prompts that it names, into the checkout."
        ) from None


def check(run: Run) -> None:
    """Raises InputError where the run names files that its job would not find: it runs in a copy of the checkout. What
    an absolute path leads to on the cluster is not known here, nor what a hub has."""
    logging.disable(logging.WARNING)  # else Ray tells which files it reads
    paths, models = {"prompts.path": run.prompts.path}, {"policy.base": run.policy.base}
    for name, reward in run.rewards.items():
        paths |= {f"rewards.{name}.{key}": getattr(reward, key) for key in ("path", "token_file")}
        models |= {f"rewards.{name}.{key}": getattr(reward, key) for key in ("model", "processor", "head")}
    paths |= {key: name for key, name in models.items() if Path(name).exists() or (ROOT / name).exists()}
    if lost := [f"{key} = {path!r}" for key, path in paths.items() if path and not _goes_along(Path(path))]:
        raise InputError(
            f"{', '.join(lost)}: nothing of that name is uploaded. A job runs in a copy of {ROOT} without what "
            ".gitignore and .rayignore name, and a relative path leads from there. Copy it into the checkout and "
            "give its path in it, or give an absolute path that is there on the cluster."
        )


def _goes_along(path: Path) -> bool:
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    if path.expanduser().is_absolute():
        return True
    place = (ROOT / path).resolve()
    if not (place.exists() and place.is_relative_to(ROOT)):
        return False
    return not any(left_out(place) for left_out in get_excludes_from_ignore_files(ROOT, include_gitignore=True))


def submit(client: Any, run: Run, words: list[str]) -> str:
    """Start `ddpo train WORDS` as a job of the cluster; its id. Raises InputError where such a run is on it."""
    if found := [job for job in jobs(client, run.name) if not job.status.is_terminal()]:
        raise InputError(
            f"run {run.name!r} is on the cluster already, as job {found[0].submission_id}. `ddpo logs {run.name}` "
            f"follows it, `ddpo stop {run.name}` ends it with a checkpoint from which a new submission goes on; "
            "another name=... starts another run."
        )
    return _start(client, ["train", *words], {"ddpo_run": run.name}, f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}")


def _start(client: Any, words: list[str], metadata: dict[str, str], name: str) -> str:
    environment = {
        "working_dir": str(ROOT), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": SECONDS_TO_LEAVE, "PYTHONUNBUFFERED": "1"},
    }
    command = shlex.join(["python", "-m", "deploy", *words])
    try:
        return client.submit_job(
            entrypoint=command, runtime_env=environment, metadata=metadata, submission_id=name.replace("/", "-")
        )
    except (OSError, RuntimeError) as error:
        raise WorkerError(f"the cluster does not take the job: {error}") from None


def jobs(client: Any, run: str) -> list[Any]:
    """The jobs of a run, the newest first."""
    found = [job for job in client.list_jobs() if (job.metadata or {}).get("ddpo_run") == run and job.submission_id]
    return sorted(found, key=lambda job: job.start_time or 0, reverse=True)


def newest(client: Any, run: str) -> Any:
    """The newest job of a run; raises InputError with the runs that there are."""
    if found := jobs(client, run):
        return found[0]
    names = sorted({job.metadata["ddpo_run"] for job in client.list_jobs() if "ddpo_run" in (job.metadata or {})})
    there = f"Submitted to it: {', '.join(names)}." if names else "Nothing was submitted to it."
    raise InputError(f"no job of a run {run!r} on this cluster. {there}")


def lives(client: Any, actor: str, namespace: str) -> bool:
    """Whether a named actor is on the cluster, as far as its dashboard can tell."""
    from ray.util.state import list_actors
    from ray.util.state.exception import RayStateApiException

    wanted = {"name": actor, "ray_namespace": namespace, "state": "ALIVE"}
    filters: Any = [(key, "=", value) for key, value in wanted.items()]
    with suppress(RayStateApiException, OSError, RuntimeError):
        return bool(list_actors(client._address, filters=filters, timeout=int(ANSWER), raise_on_missing_output=False))
    return False


def there(client: Any, words: list[str]) -> int:
    """Have one of our commands run on the cluster, print what it prints and return its exit code. Where that is broken
    off, by Ctrl-C, SIGTERM or a network that fails, it ends there too."""
    name = f"{words[0]}-{time.time_ns()}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return follow(client, _start(client, words, {"ddpo_command": words[0]}, name))
    except BaseException:
        with suppress(OSError, RuntimeError):  # it never began, or is out of reach
            client.stop_job(name)
        raise
