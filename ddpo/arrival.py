"""What a worker says once it is up: which code it runs, and on what it computes.

Consumes the config's word for its device, produces an `Arrival` for the driver and a line in the worker's own log;
waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ddpo.device import Hardware, hardware, shown
from ddpo.source import fingerprint


@dataclass(frozen=True)
class Arrival:
    """A worker -> driver. sources: fingerprint of the code on its node; hardware: as in ddpo.device."""

    sources: str
    hardware: Hardware


def arrive(who: str, device: str) -> Arrival:
    """Called in the worker, each time that somebody asks whether it is there."""
    found = hardware(device)
    print(f"{who} computes on {shown(found)}", flush=True)
    return Arrival(fingerprint(), found)
