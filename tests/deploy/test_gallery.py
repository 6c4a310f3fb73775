"""A grid whose images do not come is left out, and said to be; the next one is written."""

from __future__ import annotations

from typing import Any

from learning import local_pools

from ddpo.errors import DeadlineError
from deploy.folder import RunFolder
from deploy.gallery import Gallery
from deploy.prepare import prepare


def test_a_grid_that_cannot_be_fetched_is_left_out_and_the_run_goes_on(make_run, tmp_path):
    folder, said, late = RunFolder(tmp_path), list[str](), [DeadlineError("the images of a chunk did not come.")]
    folder.images.mkdir()

    def fetch(rollouts: Any) -> list[Any]:
        if late:
            raise late.pop()
        return [chunk.images for chunk in rollouts.chunks]

    samplers, rewards, learner = local_pools(make_run())
    gallery = Gallery(prepare(make_run()).fixed, samplers, rewards, fetch, folder, said.append)
    gallery.request(learner.policy())
    assert gallery.collect() == [] and not gallery.has(0)
    gallery.request(learner.policy())
    assert [step for step, _ in gallery.collect()] == [0] and gallery.has(0)
    assert said == ["The grid of step 0 is left out: the images of a chunk did not come. The run goes on without it."]
