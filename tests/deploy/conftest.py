"""The real command line for tests: called in this process, or as a process group of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hub
import pytest
import tiny
from terminal import Answer, Started, result, write_run

from deploy.__main__ import main


@pytest.fixture
def ddpo(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Answer]:
    """ddpo("train", ...) in a folder of its own; no command may show a traceback."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Answer:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse's
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Answer(code, out, err)

    return call


@pytest.fixture
def run_file(model: Path, tmp_path: Path) -> Path:
    """The small run as a file."""
    return write_run(tmp_path / "small.toml", tiny.run(model))


@pytest.fixture
def train(ddpo: Callable[..., Answer], run_file: Path) -> Callable[..., Answer]:
    """train("lag=1", ...): the small run in this process."""
    return lambda *words: ddpo("train", run_file, "--in-process", *words)


@pytest.fixture
def reward_file(tmp_path: Path) -> Callable[[str], list[str]]:
    """reward_file(source): the overrides that make it the run's only reward, with 5 s a chunk."""

    def write(source: str) -> list[str]:
        path = tmp_path / "mine.py"
        path.write_text(source)
        return ["rewards.jpeg.kind=function", f"rewards.jpeg.path={path}", "rewards.jpeg.timeout=5"]

    return write


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """start("train", ...) in the background; whatever is left of it is killed in the end."""
    started: list[Started] = []

    def begin(*words: str | Path) -> Started:
        started.append(Started(tmp_path, [str(word) for word in words]))
        return started[-1]

    yield begin
    for command in started:
        for process in command.left():
            process.kill()
        command.process.wait(30)


@pytest.fixture(scope="session")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """undisturbed(steps): the LoRA digest of the small run to which nothing happens."""

    def digest(steps: int) -> str:
        folder = tmp_path_factory.mktemp("undisturbed")
        file = write_run(folder / "small.toml", tiny.run(model))
        assert main(["train", str(file), "--in-process", "--runs", str(folder), f"steps={steps}"]) == 0
        return result(folder / "small")["lora_digest"]

    return digest


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    """A hub that the client finds and has a token for, with an empty cache."""
    with hub.found(tmp_path_factory.mktemp("huggingface")) as server:
        yield server
