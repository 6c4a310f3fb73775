"""policies/ in the run folder: every policy that drew an image, so that any image can be drawn again.

    policies/000003-1a2b3c4d5e6f.msgpack    version and the digest's first letters; the message as it was sent

A LoRA policy is a few MB and all are kept; a whole UNet is gigabytes, so of those only the ones in checkpoints are.

Consumes `Policy`, produces files and reads them back, proven; waits for the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from glob import glob
from pathlib import Path

from ddpo.config import Run
from ddpo.errors import DeliveryError, LedgerError
from ddpo.types import Policy
from ddpo.weights import read
from deploy.folder import RunFolder, guarded, write


def keep(folder: RunFolder, policy: Policy, run: Run) -> None:
    """Write the policy, if the run keeps all and this one is not there yet."""
    path = folder.policies / _name(policy.version, policy.digest)
    wanted = run.checkpoints.policies == "all" or (run.checkpoints.policies == "auto" and run.policy.train == "lora")
    if wanted and not path.exists():
        with guarded(path):
            folder.policies.mkdir(exist_ok=True)
            write(path, policy.message)


def kept(folder: RunFolder) -> Iterator[tuple[Path, Policy | None]]:
    """All policies on disk, those in checkpoints too; None where one is damaged. A run that goes on may prune some in
    the meantime: these are left out."""
    for pattern in ("policies/[0-9]*.msgpack", "checkpoints/[0-9]*/policies/[0-9]*.msgpack"):
        for path in _there(folder.path, pattern):
            with suppress(FileNotFoundError):
                yield path, _read(path)


def find(folder: RunFolder, version: int, digest: str) -> Policy:
    """The policy of this version and digest; raises LedgerError where it was not kept."""
    in_checkpoints = _there(folder.checkpoints, f"[0-9]*/policies/{version:06d}.msgpack")
    for path in [folder.policies / _name(version, digest), *in_checkpoints]:
        with suppress(FileNotFoundError):
            if (policy := _read(path)) and policy.digest == digest:
                return policy
    known = ", ".join(str(number) for number in sorted({policy.version for _, policy in kept(folder) if policy}))
    raise LedgerError(
        f"policy {version} (digest {digest[:12]}) is not in {folder.path}, or not whole, so what it drew cannot be "
        f'drawn again. There are: {known or "none"}. With checkpoints.policies = "all", as LoRA runs have it by '
        "default, a run keeps every policy that drew an image; else checkpoints alone hold some, and only the newest "
        "checkpoints.keep of these stay."
    )


def _name(version: int, digest: str) -> str:
    return f"{version:06d}-{digest[:12]}.msgpack"


def _there(folder: Path, pattern: str) -> list[Path]:
    """Paths that match, in their order. Not by Path.glob, which raises where a folder vanishes under it."""
    return [folder / name for name in sorted(glob(pattern, root_dir=folder))]  # noqa: PTH207


def _read(path: Path) -> Policy | None:
    try:
        return read(path.read_bytes())
    except DeliveryError:
        return None
