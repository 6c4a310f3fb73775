"""`ddpo publish`: a folder to give away, with weights, card and pictures; and its upload to the hub.

Consumes a checkpoint, and the run folder around it where it is there; produces a folder. Waits for the hub where the
upload is asked for. No torch.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

from ddpo.base import find
from ddpo.config import Run
from ddpo.errors import CheckpointError, DdpoError, InputError
from ddpo.runfile import parse
from ddpo.weights import read
from deploy import pairs
from deploy.card import PAPER, Facts, text
from deploy.folder import write
from deploy.report.read import read_run
from deploy.train import latest_checkpoint
from learner import checkpoint
from learner.lora import LORA_FILE, UNET_FOLDER

CARD, PICTURE = "README.md", "before_after.png"
OURS = {CARD, PICTURE, LORA_FILE, UNET_FOLDER}


def publish(path: Path, out: Path | None, repository: str, public: bool) -> list[str]:
    """Write the folder and upload it where a repository is named; returns what to tell: the folder, the address."""
    if repository:
        _check_repository(repository)
    elif public:
        raise InputError("--public: nothing is uploaded without --push-to-hub OWNER/NAME, so it says nothing.")
    source = latest_checkpoint(path)
    state = _state(source)
    run = parse(state["run"], [], str(source))
    out = out or Path("published") / f"{run.name}-{state['step']}"
    _check_free(out)
    _write(source, state["step"], run, out, repository)
    return [str(out)] + ([_upload(out, repository, public)] if repository else [])


def _state(source: Path) -> dict[str, Any]:
    try:
        return checkpoint.read_state(source)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {source}: {error}") from None


def _check_free(out: Path) -> None:
    """An earlier folder of ours is written anew; anything else that lies there would be lost, or be uploaded too."""
    present = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    ours = set(present) <= OURS and CARD in present and PAPER in (out / CARD).read_text(encoding="utf-8")
    if present and not ours:
        raise InputError(f"--out: {out} holds something else already ({', '.join(present[:3])}). Give another folder.")


def _write(source: Path, step: int, run: Run, out: Path, repository: str) -> None:
    home = next((folder for folder in source.resolve().parents[:2] if (folder / "run.json").is_file()), None)
    told = read_run(home) if home else None
    shown = pairs.steps(told, step) if told else None
    digest = read((source / "policies" / f"{step:06d}.msgpack").read_bytes()).digest
    about = Facts(
        run, find(run.policy.base), step, digest, repository or out.name,
        [row for row in told.rows if row["step"] <= step] if told else [], told.facts if told else {}, shown, PICTURE,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        _copy(source, out)
        if told and shown:
            write(out / PICTURE, _png(pairs.picture(told, shown)))
        write(out / CARD, text(about))
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error.strerror}. Give another folder.") from None


def _copy(source: Path, out: Path) -> None:
    """The weights, and nothing that is left there of an earlier checkpoint."""
    for name in OURS:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    if (source / LORA_FILE).is_file():
        shutil.copyfile(source / LORA_FILE, out / LORA_FILE)
    else:
        shutil.copytree(source / UNET_FOLDER, out / UNET_FOLDER)


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _check_repository(name: str) -> None:
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--push-to-hub: {name!r} is no repository's name: {error}") from None
    if name.count("/") != 1:
        raise InputError(f'--push-to-hub: {name!r} has no owner. Write OWNER/NAME, for example "ann/{name}".')
    if get_token() is None:
        raise InputError(
            "--push-to-hub: there is no token for the hub, so nothing can be uploaded. Log in with `hf auth login`, or "
            "set HF_TOKEN to one with write access."
        )


def _upload(out: Path, repository: str, public: bool) -> str:
    """Create the repository, private unless asked otherwise, and upload the folder in one commit."""
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        place = hub.create_repo(repository, private=not public, exist_ok=True)
        if not public and not hub.model_info(repository).private:
            raise InputError(
                f"--push-to-hub: {repository} is there already and everybody can read it. If that is right write "
                "--public, else give another name. Nothing was uploaded."
            )
        hub.upload_folder(repo_id=repository, folder_path=out, commit_message="Weights, card and pictures")
    except InputError:
        raise
    except Exception as error:  # the hub's client raises many kinds; all mean that the upload is not done
        raise DdpoError(
            f"--push-to-hub: {repository} was not uploaded ({type(error).__name__}: {' '.join(str(error).split())}). "
            f"The folder {out} is complete; check the network and the token's rights, and call again."
        ) from error
    return str(place)
