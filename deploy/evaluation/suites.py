"""Suites of prompts: those of the training, and those that show whether what was learned holds elsewhere.

Consumes a `Run`, produces `Suite`s; waits for nothing. No torch.

The lists are those of Black et al. 2023 (figure 12, as ddpo-pytorch's branch dev has them). Whatever is called unseen,
new or other leaves out every prompt that the run trained on.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import menagerie
from actors.prompts import ANIMALS, article, plain, source
from ddpo.config import PromptsConfig, Run
from ddpo.errors import InputError
from ddpo.types import Prompt


def _names(text: str) -> list[str]:
    return [" ".join(name.split()) for name in text.split(",")]


UNSEEN_ANIMALS = _names("""
elephant, giraffe, hippopotamus, rhinoceros, ostrich, penguin, seal, otter, walrus, chimpanzee, orangutan, koala,
platypus, crocodile, alligator, Komodo dragon, anaconda, octopus, squid, lobster, crab, jellyfish, starfish, seahorse,
pelican, flamingo, toucan, parrot, peacock, skunk, badger, porcupine, armadillo, sloth, beaver, moose, reindeer,
shoebill stork
""")
OBJECTS = _names("""
toaster, chair, car, coffee cup, refrigerator, lamp, television, sofa, computer, smartphone, bicycle, table, bookshelf,
clock, microwave, blender, vacuum cleaner, iron, washing machine, dryer, oven, dishwasher, mirror, picture frame,
trash can, plant pot, water bottle, backpack, umbrella, sunglasses, wallet, keychain, pen, pencil, notebook, stapler,
scissors, tape dispenser, calculator, eraser, ruler, glue stick, highlighter, marker, Post-it notes, envelope, stamp,
key, skull, flower
""")
UNSEEN_ACTIVITIES = ["taking an exam", "playing the piano", "cooking dinner"]  # the first is the paper's


@dataclass(frozen=True)
class Suite:
    """Prompts that are evaluated together; `title` is what they are, in words that follow "On"."""

    name: str
    title: str
    prompts: list[Prompt]

    @property
    def has_questions(self) -> bool:
        """Whether every prompt has what kind = "satisfaction" asks."""
        return all(prompt.metadata.get("questions") for prompt in self.prompts)


def _training(run: Run) -> list[Prompt]:
    return source(run.prompts)


def _unseen_animals(run: Run) -> list[Prompt]:
    return _untrained(plain(UNSEEN_ANIMALS), run)


def _objects(run: Run) -> list[Prompt]:
    return _untrained(plain(OBJECTS), run)


def _unseen_activities(run: Run) -> list[Prompt]:
    """Each common animal in one of the unseen activities, in turn: "a duck taking an exam"."""
    return _untrained(_in_turn(ANIMALS, UNSEEN_ACTIVITIES), run)


def _new_pairs(run: Run) -> list[Prompt]:
    """Each unseen animal in one of the run's activities, in turn, from the paper's "a capybara washing dishes" on."""
    return _untrained(_in_turn(["capybara", *UNSEEN_ANIMALS], run.prompts.activities), run)


def _other_animals(run: Run) -> list[Prompt]:
    """The common animals that the run did not train on, in the form of its prompts."""
    config = run.prompts
    with_nouns = config.kind in ("nouns_activities", "counting")
    trained = {word for prompt in source(config) for word in prompt.text.split()}
    nouns = set(config.nouns or ANIMALS) if with_nouns else trained
    others = [animal for animal in ANIMALS if animal not in nouns]
    if with_nouns:
        return _untrained(source(replace(config, nouns=others)), run) if others else []
    return plain(others)


def _untaught_scenes(run: Run) -> list[Prompt]:
    """Animals that menagerie never saw doing anything, in every scene that it knows."""
    animals = [animal for animal in menagerie.ANIMALS if animal not in menagerie.SCENES_TAUGHT]
    scenes = [menagerie.scene(animal, activity) for animal in animals for activity in menagerie.ACTIVITIES]
    return _untrained(plain(scenes), run) if run.policy.base == "menagerie" else []


def _counting(run: Run) -> list[Prompt]:
    """Each common animal in one number, in turn, with its questions: "two cats", "three dogs"."""
    many = source(PromptsConfig(kind="counting"))
    numbers = len(many) // len(ANIMALS)
    return [many[place * numbers + place % numbers] for place in range(len(ANIMALS))]


def _in_turn(nouns: Sequence[str], activities: Sequence[str]) -> list[Prompt]:
    return plain([f"{article(noun)} {activities[place % len(activities)]}" for place, noun in enumerate(nouns)])


def _untrained(prompts: list[Prompt], run: Run) -> list[Prompt]:
    trained = {prompt.text for prompt in source(run.prompts)}
    return [prompt for prompt in prompts if prompt.text not in trained]


SUITES: dict[str, tuple[str, Callable[[Run], list[Prompt]]]] = {
    "training": ("training prompts", _training),
    "other-animals": ("prompts of common animals that were not trained on", _other_animals),
    "unseen-animals": ("unseen animals", _unseen_animals),
    "objects": ("everyday objects", _objects),
    "unseen-activities": ("prompts of animals in unseen activities", _unseen_activities),
    "new-pairs": ("prompts of unseen animals in the training's activities", _new_pairs),
    "counting": ("counting prompts", _counting),
    "untaught-scenes": ("scenes that menagerie was not taught", _untaught_scenes),
}


def choose(words: str, run: Run) -> tuple[list[Suite], list[str]]:
    """The suites of `--suite`, and what there is to say about them; raises InputError where one cannot be evaluated."""
    if words.strip() == "all":
        found = [_suite(name, run) for name in SUITES]
        reasons = {suite.name: _hindrance(suite, run) or _foreign(suite, run, every=True) for suite in found}
        notes = [f"suite {name} is left out: {why}" for name, why in reasons.items() if why]
        return [suite for suite in found if not reasons[suite.name]], notes
    suites = [_suite(word.strip(), run) for word in dict.fromkeys(words.split(",")) if word.strip()]
    hindrances = [f"--suite {suite.name}: {why}" for suite in suites if (why := _hindrance(suite, run))]
    if hindrances or not suites:
        raise InputError("\n".join(hindrances) or f"--suite names none. Suites: {', '.join(SUITES)}, all.")
    notes = [f"suite {suite.name}: {why}" for suite in suites if (why := _foreign(suite, run, every=False))]
    return suites, notes


def _suite(word: str, run: Run) -> Suite:
    if word in SUITES:
        title, prompts = SUITES[word]
        return _titled(word, title, prompts(run))
    if Path(word).suffix in (".txt", ".jsonl") or Path(word).is_file():
        config = PromptsConfig(kind="from_file", path=word)
        return _titled(Path(word).stem, f"prompts of {Path(word).name}", source(config))
    close = difflib.get_close_matches(word, [*SUITES, "all"], n=1)
    hint = f'Did you mean "{close[0]}"?' if close else f"Suites: {', '.join(SUITES)}, all; or a .txt or .jsonl file."
    raise InputError(f"--suite: there is no suite {word!r}. {hint}")


def _titled(name: str, title: str, prompts: list[Prompt]) -> Suite:
    """A prompt that a file has twice counts once."""
    once = list({prompt.text: prompt for prompt in prompts}.values())
    words = title.replace("prompts", "prompt", 1) if len(once) == 1 else title
    return Suite(name, f"{len(once)} {words}", once)


def _hindrance(suite: Suite, run: Run) -> str:
    """Why there is nothing to evaluate, if so."""
    if not suite.prompts and suite.name == "untaught-scenes" and run.policy.base != "menagerie":
        return "these scenes are menagerie's, and the base is another model."
    if not suite.prompts:
        return "the run trained on all of its prompts, so none is left that is new to it."
    if suite.name == "counting" and all(reward.kind != "satisfaction" for reward in run.rewards.values()):
        return "no reward here counts. Add `--rewards satisfaction` (LLaVA; rewards.satisfaction.model=... names it)."
    return ""


def _foreign(suite: Suite, run: Run, every: bool) -> str:
    """Which words mean nothing to menagerie, where some prompts, or with `every` all of them, hold such words."""
    if run.policy.base != "menagerie":
        return ""
    known = {"a", "an", *menagerie.ANIMALS, *(word for activity in menagerie.ACTIVITIES for word in activity.split())}
    foreign = [words for prompt in suite.prompts if (words := [w for w in prompt.text.split() if w not in known])]
    if not foreign or (every and len(foreign) < len(suite.prompts)):
        return ""
    return (
        f"menagerie was not taught the words of {len(foreign)} of {len(suite.prompts)} prompts (such as "
        f"{foreign[0][0]!r}); it reads them, but they mean nothing to it, so pictures and scores say little."
    )
