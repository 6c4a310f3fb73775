"""Several hosts on one machine: each a network namespace with an address and ports of its own, its cable in one switch.

The switch is a namespace too, so that nothing of this machine's own network is touched or needed. Hosts share disk,
memory and clock. Consumes a number, produces hosts; at the end all that runs in them is killed. Needs root and `ip`.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ddpo.source import ROOT

SWITCH = "switch"


@dataclass(frozen=True)
class Host:
    """network: of which it is a part; name: of its namespace, and of its cable at the switch"""

    network: str
    name: str
    address: str

    def start(self, command: list[str], log: Path, **settings: str) -> subprocess.Popen[bytes]:
        """A process on this host, which prints into a file."""
        with log.open("ab") as out:
            return subprocess.Popen(self._inside(command), env=_environment(settings), cwd=ROOT, stdout=out, stderr=out)

    def run(self, command: list[str], seconds: float, **settings: str) -> subprocess.CompletedProcess[str]:
        """A command on this host, to its end."""
        return subprocess.run(
            self._inside(command), env=_environment(settings), cwd=ROOT, capture_output=True, text=True,
            timeout=seconds, check=False,
        )

    def cut(self) -> None:
        """Pull the cable: what runs here goes on, and nothing comes or goes."""
        self._cable("down")

    def heal(self) -> None:
        """Plug it in again."""
        self._cable("up")

    def kill(self) -> None:
        """End all that runs here."""
        _kill(self.space)

    @property
    def space(self) -> str:
        """Its namespace."""
        return f"{self.network}-{self.name}"

    def _inside(self, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.space, *command]

    def _cable(self, state: str) -> None:
        _ip("-n", f"{self.network}-{SWITCH}", "link", "set", self.name, state)


def refusal() -> str:
    """Why there can be no hosts here; "" where there can."""
    if not shutil.which("ip"):
        return "there is no `ip` (iproute2)"
    try:
        with hosts(1) as (host,):
            return host.run(["true"], 10).stderr.strip()
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}`: {error.stderr.strip()}"


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Hosts in one network. Ray looks for clusters among all processes, so that each network has other addresses."""
    _sweep()
    network, subnet = f"ddpo-{os.getpid()}", f"10.77.{random.SystemRandom().randrange(256)}"
    with ExitStack() as taken:
        taken.enter_context(_namespace(f"{network}-{SWITCH}"))
        _ip("-n", f"{network}-{SWITCH}", "link", "add", "bridge", "type", "bridge")
        _ip("-n", f"{network}-{SWITCH}", "link", "set", "bridge", "up")
        made = [Host(network, f"host{number}", f"{subnet}.{number}") for number in range(1, count + 1)]
        for host in made:
            taken.enter_context(_namespace(host.space))
            taken.callback(host.kill)
            _connect(host)
        yield made


@contextmanager
def _namespace(name: str) -> Iterator[None]:
    _ip("netns", "add", name)
    try:
        yield
    finally:
        _ip("netns", "del", name)


def _sweep() -> None:
    """Remove the networks of processes that were killed before they could."""
    for space in re.findall(r"^ddpo-\d+-\w+", _ip("netns", "list"), re.M):
        if not psutil.pid_exists(int(space.split("-")[1])):
            _kill(space)
            _ip("netns", "del", space)


def _kill(space: str) -> None:
    for word in _ip("netns", "pids", space).split():
        with suppress(ProcessLookupError):
            os.kill(int(word), signal.SIGKILL)


def _connect(host: Host) -> None:
    switch = f"{host.network}-{SWITCH}"
    _ip("link", "add", "eth0", "netns", host.space, "type", "veth", "peer", "name", host.name, "netns", switch)
    _ip("-n", switch, "link", "set", host.name, "master", "bridge", "up")
    _ip("-n", host.space, "address", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", host.space, "link", "set", device, "up")


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=30).stdout


def _environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """This process's, without what it says of Ray."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | settings
