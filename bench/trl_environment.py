"""The baseline's own environment: TRL 0.23.1, the last release that had DDPOTrainer, kept apart from ours.

Consumes: `trl-constraints.txt` beside this file (every package, pinned), a folder to keep the environment in.
Produces: the environment's Python, and through `run_trl` what `trl_ddpo.py` measured inside it.
Waits for: pip and the run, each up to a deadline.

Which build of torch is installed (CPU or CUDA), pip's own configuration says (PIP_FIND_LINKS, PIP_INDEX_URL).
"""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).with_name("trl-constraints.txt")
PROGRAM = Path(__file__).with_name("trl_ddpo.py")
PACKAGES = ("torch", "trl", "diffusers", "transformers", "accelerate", "peft", "pillow")
GRACE = 40.0  # seconds; torchrun gives its own ranks 30
PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


class TRLError(RuntimeError):
    """The baseline could not be installed or did not finish; the message says what, why and what to do."""


@dataclass(frozen=True)
class Work:
    """What the baseline does, in our words: totals over all processes, but batches per process as in TRL."""

    steps: int  # denoising steps of an image, all of them trained on
    guidance: float
    images_per_epoch: int
    sample_batch: int  # images that one process samples at a time
    train_batch: int  # images, at one timestep, that one process trains on at a time
    updates_per_epoch: int
    epochs: int  # the first is the warm-up and is reported apart
    lora_rank: int
    lr: float
    clip: float
    eta: float = 1.0
    reward: str = "jpeg"
    seed: int = 0

    def flags(self) -> list[str]:
        """Return the command line of `trl_ddpo.py` that says the same."""
        return [f"--{field.name.replace('_', '-')}={getattr(self, field.name)}" for field in fields(self)]

    def accumulation(self, processes: int) -> int:
        """Return the train batches that one process accumulates for one optimizer update."""
        return self.images_per_epoch // (self.train_batch * processes * self.updates_per_epoch)

    def check(self, processes: int) -> None:
        """Raise ValueError with everything that stops TRL from doing exactly this work."""
        whole = {
            "sample_batch x processes": self.sample_batch * processes,
            "train_batch x processes x updates_per_epoch": self.train_batch * processes * self.updates_per_epoch,
        }
        problems = [
            f"images_per_epoch is {self.images_per_epoch}, not a multiple of {size} ({factors})"
            for factors, size in whole.items()
            if self.images_per_epoch % size
        ]
        if self.sample_batch % self.train_batch:
            problems.append(f"sample_batch is {self.sample_batch}, not a multiple of train_batch {self.train_batch}")
        if self.epochs < 2:
            problems.append(f"epochs is {self.epochs}, but the first is only the warm-up: give at least 2")
        if problems:
            raise ValueError(f"TRL cannot do this work exactly, so speeds would not compare: {'; '.join(problems)}.")


@dataclass(frozen=True)
class Layout:
    """How the baseline uses the machine: data-parallel processes, threads in each, how idle threads wait."""

    processes: int
    threads: int
    wait_policy: str = "PASSIVE"  # OMP_WAIT_POLICY; "" leaves OpenMP's default

    def environment(self) -> dict[str, str]:
        """Return our environment variables without what points at our own Python, and with this layout's."""
        foreign = ("PYTHON", "OMP_", "GOMP_", "MKL_", "ACCELERATE_")
        ours = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
        policy = {"OMP_WAIT_POLICY": self.wait_policy} if self.wait_policy else {}
        return ours | offline | policy | {"OMP_NUM_THREADS": str(self.threads)}

    def launcher(self, python: Path) -> list[str]:
        """Return the start of the command: plain Python, or torchrun on a free local port."""
        if self.processes == 1:
            return [str(python)]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        return [str(python), *torchrun]


def trl_python(cache: Path, deadline: float = 1800.0) -> Path:
    """Return the Python of the pinned environment under `cache`, installing it first (1.5 GB) if need be."""
    version = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()[:12]
    home = cache.resolve() / f"trl-{version}-{digest}"
    if not home.exists():
        _install(home, deadline)
    return home / "bin" / "python"


def run_trl(
    model: Path, prompts: Sequence[str], work: Work, layout: Layout, cache: Path, deadline: float = 3600.0
) -> dict[str, Any]:
    """Run TRL's DDPOTrainer on a diffusers folder and return its report (see `trl_ddpo.py`).

    Raises ValueError for a folder without a model and for work that TRL cannot do exactly, TRLError where it
    failed or took over `deadline` seconds.
    """
    if not (model / "model_index.json").is_file():
        raise ValueError(f"{model} holds no model_index.json, so it is no diffusers model. Make or name another.")
    work.check(layout.processes)
    python = trl_python(cache)
    with tempfile.TemporaryDirectory(prefix="trl-") as folder:
        listed = Path(folder, "prompts.txt")
        listed.write_text("\n".join(prompts) + "\n", encoding="utf-8")
        given = [f"--model={model.resolve()}", f"--prompts={listed}", f"--threads={layout.threads}"]
        command = [*layout.launcher(python), str(PROGRAM), *given, *work.flags()]
        output = _call("TRL's DDPOTrainer", command, deadline, layout.environment(), folder)
    return _report(output)


def _install(home: Path, deadline: float) -> None:
    """Make the environment beside `home` and move it there whole, so that a half-made one is never reused."""
    home.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f"{home.name}-making-", dir=home.parent))
    pip = [str(making / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        _call("making an environment for TRL", [sys.executable, "-m", "venv", str(making)], deadline)
        _call("installing TRL", [*pip, "--constraint", str(CONSTRAINTS), *PACKAGES], deadline)
        if not home.exists():  # another benchmark's came first: equally good
            making.rename(home)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _call(
    what: str,
    command: Sequence[str],
    deadline: float,
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
) -> str:
    """Run a command and return its stdout; where it fails, raise TRLError with the end of its stderr."""
    with _child(command, environment, folder) as process:
        try:
            output, errors = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            raise TRLError(
                f"{what} was not done after {deadline:.0f} s and was stopped: {' '.join(command)}. "
                "Give it fewer images or steps, or a later deadline."
            ) from None
    if process.returncode:
        raise TRLError(
            f"{what} failed with exit code {process.returncode}: {' '.join(command)}\n{_cause(errors)}\n"
            "There is no baseline without it: mend what the last lines name, or leave TRL out."
        )
    return output


def _cause(errors: str) -> str:
    """Return the end of a failed command's stderr, skipping torchrun's summary where ranks said why."""
    lines = errors.splitlines()
    return "\n".join(([line for line in lines if line.startswith("[rank")] or lines)[-25:])


@contextlib.contextmanager
def _child(
    command: Sequence[str], environment: Mapping[str, str] | None, folder: str | None
) -> Iterator[subprocess.Popen[str]]:
    """Start a command that ends when we do, however that comes; torchrun takes its ranks along on SIGTERM."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=folder, preexec_fn=_end_with_parent
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            process.kill()


def _end_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent is gone: a killed benchmark leaves nobody."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _report(output: str) -> dict[str, Any]:
    """Return the JSON object on the last line of `trl_ddpo.py`'s stdout."""
    last = output.strip().rpartition("\n")[2]
    try:
        return json.loads(last)
    except json.JSONDecodeError:
        raise TRLError(
            f"TRL's run ended without a report: its last line is {last!r}, not JSON. Something else wrote to "
            "stdout after it; run trl_ddpo.py by hand to see what."
        ) from None
