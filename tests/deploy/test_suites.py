"""Suites of prompts: the paper's lists, and what is left out because a run trained on it."""

from __future__ import annotations

import pytest

from ddpo.config import Run
from ddpo.errors import InputError
from ddpo.runfile import parse
from deploy.evaluation.suites import OBJECTS, SUITES, UNSEEN_ANIMALS, choose


def run(base: str = "sd", reward: str = "compressibility", **prompts: object) -> Run:
    table = {"policy": {"base": base}, "rewards": {"r": {"kind": reward}}, "prompts": prompts}
    return parse(table, [], "test")


def texts(name: str, of: Run) -> list[str]:
    suites, _ = choose(name, of)
    return [prompt.text for prompt in suites[0].prompts]


def test_the_lists_are_the_papers():
    assert (len(UNSEEN_ANIMALS), len(OBJECTS)) == (38, 50)
    assert len({*UNSEEN_ANIMALS, *OBJECTS}) == 88
    assert {"Komodo dragon", "shoebill stork", "octopus"} <= set(UNSEEN_ANIMALS)
    assert {"Post-it notes", "glue stick", "skull"} <= set(OBJECTS)
    assert not set(UNSEEN_ANIMALS) & set(texts("training", run()))


def test_prompts_have_their_articles_and_hold_those_that_the_paper_shows():
    pairs, activities = texts("new-pairs", run()), texts("unseen-activities", run())
    assert (len(pairs), len(activities)) == (39, 45)
    assert "a capybara washing dishes" in pairs and "an octopus washing dishes" in pairs
    assert "a duck taking an exam" in activities and any(text.startswith("an ant ") for text in activities)


def test_a_suite_says_how_many_prompts_it_has():
    suites, notes = choose("objects,unseen-animals,objects", run())
    assert [suite.title for suite in suites] == ["50 everyday objects", "38 unseen animals"] and notes == []


def test_what_was_trained_on_is_not_unseen():
    trained = run(kind="list", items=["elephant", "toaster", "a duck taking an exam", "a cat"])
    assert len(texts("unseen-animals", trained)) == 37 and "elephant" not in texts("unseen-animals", trained)
    assert len(texts("objects", trained)) == 49
    assert "a duck taking an exam" not in texts("unseen-activities", trained)
    others = texts("other-animals", trained)
    assert len(others) == 43 and not {"cat", "duck"} & set(others)


def test_other_animals_have_the_form_of_the_trainings_prompts():
    scenes = texts("other-animals", run(kind="nouns_activities", nouns=["cat", "dog"], activities=["riding a bike"]))
    assert len(scenes) == 43 and scenes[0] == "a horse riding a bike" and "an ant riding a bike" in scenes
    counted, _ = choose("other-animals", run(kind="counting", nouns=["cat"], low=2, high=2))
    assert counted[0].has_questions and counted[0].prompts[0].text == "two dogs" and len(counted[0].prompts) == 44


def test_new_pairs_are_in_the_runs_own_activities():
    pairs = texts("new-pairs", run(kind="nouns_activities", activities=["reading a book"]))
    assert pairs[:2] == ["a capybara reading a book", "an elephant reading a book"]


def test_counting_asks_of_every_animal_one_number_with_questions():
    suites, _ = choose("counting", run(reward="satisfaction", kind="counting"))
    prompts = suites[0].prompts
    assert len(prompts) == 45 and suites[0].has_questions
    assert [prompt.text for prompt in prompts[:2]] == ["two cats", "three dogs"]
    assert {prompt.text.split()[0] for prompt in prompts} == set("two three four five six seven eight nine".split())


def test_all_is_what_applies_and_says_what_it_leaves_out():
    suites, notes = choose("all", run())
    assert {suite.name for suite in suites} == {*SUITES} - {"other-animals", "counting", "untaught-scenes"}
    assert len(notes) == 3 and any("counting is left out: no reward here counts" in note for note in notes)
    menagerie, _ = choose("all", run("menagerie", kind="list", items=["cat"]))
    assert {suite.name for suite in menagerie} == {"training", "other-animals", "untaught-scenes"}


def test_words_that_menagerie_was_not_taught_are_pointed_out():
    suites, notes = choose("unseen-animals,untaught-scenes", run("menagerie"))
    assert [len(suite.prompts) for suite in suites] == [38, 45]
    assert len(notes) == 1 and "not taught the words of 38 of 38 prompts (such as 'elephant')" in notes[0]


def test_a_file_of_prompts_is_a_suite_and_repeats_count_once(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a cat", "metadata": {"questions": ["?"], "answers": ["!"]}}\n{"prompt": "a cat"}\n')
    suites, _ = choose(str(file), run())
    assert (suites[0].name, suites[0].title, len(suites[0].prompts)) == ("mine", "1 prompt of mine.jsonl", 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("unseen-animal", 'no suite \'unseen-animal\'. Did you mean "unseen-animals"?'),
        ("xyz", "Suites: training, other-animals"),
        (" , ", "--suite names none"),
        ("counting", "no reward here counts. Add `--rewards satisfaction`"),
        ("other-animals", "the run trained on all of its prompts"),
        ("untaught-scenes", "these scenes are menagerie's"),
        ("training,nowhere.txt", "cannot read nowhere.txt"),
    ],
)
def test_a_suite_that_cannot_be_evaluated_says_why(words, said):
    with pytest.raises(InputError) as error:
        choose(words, run())
    assert said in str(error.value)
