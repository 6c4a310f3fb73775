"""What the dashboards show of a run: scraped, as Prometheus does it, from the endpoint of a real cluster."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
import urllib.request
from collections import defaultdict
from typing import Any

import promql_parser
import pytest

from deploy import board, cluster
from deploy.board import DASHBOARD, Board
from deploy.facts import facts
from deploy.folder import choose
from deploy.interrupt import stoppable
from deploy.log import Wandb
from deploy.machines import Machines
from deploy.prepare import prepare
from deploy.session import Session

BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text())
PANELS: list[dict[str, Any]] = BOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
(WINDOWS,) = [variable["query"].split(",") for variable in BOARD["templating"]["list"] if variable["name"] == "window"]
ASKED = {name for query in QUERIES for name in re.findall(r"ray_ddpo_\w+", query)}
BUSY = """
import os

def reward(images, prompts, metadata):
    if not os.path.exists({flag!r}):
        open({flag!r}, "w").close()
        os._exit(1)
    return [None] + [float(image.mean()) for image in images[1:]], {{}}
"""


def test_every_query_asks_for_the_run_that_is_chosen():
    assert len(QUERIES) > 30
    for query in QUERIES:
        assert len(re.findall("ray_ddpo_", query)) == len(re.findall(r'\{run="\$run"', query)), query


def filled(query: str, window: str) -> str:
    """A query as Grafana sends it, with its variables replaced; one that the dashboard does not have stays."""
    return query.replace("$run", "small").replace("$window", window)


@pytest.mark.parametrize("window", WINDOWS)
def test_every_query_is_promql(window):
    for query in QUERIES:
        promql_parser.parse(filled(query, window))


@pytest.mark.parametrize("query", [query.removesuffix(")") for query in QUERIES if query.endswith(")")])
def test_a_query_without_its_last_parenthesis_is_none(query):
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse(filled(query, WINDOWS[0]))


@pytest.mark.parametrize("query", ["rate(ray_ddpo_step[$time])", "rat(ray_ddpo_step[$window])", "rate(ray_ddpo_step)"])
def test_a_variable_or_function_that_nobody_knows_is_none(query):
    with pytest.raises(ValueError, match=r"'\$'|unknown function|expected type"):
        promql_parser.parse(filled(query, WINDOWS[0]))


def test_panels_have_ids_of_their_own_and_places_that_do_not_overlap():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for one, other in itertools.combinations([panel["gridPos"] for panel in PANELS], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)


def test_our_dashboard_goes_beside_those_of_ray(tmp_path):
    board.provision(tmp_path)
    assert not list(tmp_path.iterdir())  # no head here, so nothing to add to
    folder = tmp_path / "metrics" / "grafana" / "dashboards"
    folder.mkdir(parents=True)
    board.provision(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["ddpo.json"]


@pytest.mark.ray
def test_a_run_exports_what_the_dashboard_asks_for_and_says_how_far_it_is(make_run, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "watched-1"}}))
    (tmp_path / "mine.py").write_text(BUSY.format(flag=str(tmp_path / "flag")))
    mine = f"rewards={{mine={{kind='function', path='{tmp_path / 'mine.py'}'}}}}"
    prepared = prepare(make_run("name=watched", "lag=1", "learner.kl=0.01", mine))
    folder = choose(tmp_path, "watched", False)
    with cluster.connected(prepared.run), stoppable(30.0) as stop, folder.claimed():
        folder.create(prepared.run, facts(in_process=False))
        told, machines = Board(prepared.run), Machines(prepared.run)
        with cluster.pools(prepared, told, machines) as pools:
            wandb = Wandb(prepared.run, folder)
            Session(prepared, folder, *pools, cluster.images, stop, wandb, told, machines).go(None)
            values, message = scraped("watched"), asyncio.run(status("watched-1"))
    assert values.keys() == ASKED
    assert (values["ray_ddpo_images_trained_total"], values["ray_ddpo_images_masked_total"]) == ([12.0], [4.0])
    assert 1.0 in values["ray_ddpo_workers_lost_total"] and values["ray_ddpo_step"] == [2.0]
    said = r"step 2/2; .*(limits? you|wait for).*; learner busy \d+%; lag 1; reward \d.* left"
    assert re.fullmatch(said, message), message


def scraped(run: str) -> dict[str, list[float]]:
    """All of ours on the endpoint, once what is asked for is there and the last step was told."""
    import ray

    node, end = ray.nodes()[0], time.monotonic() + 30
    while True:
        values = defaultdict(list)
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if match := re.match(rf'(ray_ddpo_\w+){{.*run="{run}".*}} (\S+)$', line):
                    values[match[1]].append(float(match[2]))
        if time.monotonic() > end or (values.keys() >= ASKED and values["ray_ddpo_step"] == [2.0]):
            return values
        time.sleep(0.5)


async def status(job: str) -> str:
    """The status message of a job."""
    from ray._private.worker import global_worker
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    info = await JobInfoStorageClient(global_worker.gcs_client).get_info(job)
    return str(info and info.message)
