"""Which nodes a worker asks for: by role and accelerator, and by neither where the cluster has no roles."""

from __future__ import annotations

from deploy.placing import labels, shown, wanted


def places(run, roles=True):
    return {pool: labels(wants, roles) for pool, wants in wanted(run).items()}


def test_workers_ask_for_nodes_of_their_role(make_run):
    run = make_run("rewards.seen={kind='clipscore', gpus=0.5, weight=0}", "learner.accelerator=H100")
    assert places(run) == {
        "samplers": {"role": "sampler"},
        "jpeg": {"role": "reward-cpu"},
        "seen": {"role": "reward-gpu"},
        "learner": {"role": "learner", "ray.io/accelerator-type": "H100"},
    }


def test_where_no_node_has_a_role_only_the_accelerator_counts(make_run):
    run = make_run("actors.accelerator=A100")
    assert places(run, roles=False) == {"samplers": {"ray.io/accelerator-type": "A100"}, "jpeg": {}, "learner": {}}


def test_roles_are_the_runs_to_choose(make_run):
    run = make_run("actors.role=learner", "rewards.jpeg.role=''")
    assert places(run) == {"samplers": {"role": "learner"}, "jpeg": {}, "learner": {"role": "learner"}}


def test_a_message_says_where():
    assert shown({"role": "sampler", "ray.io/accelerator-type": "A100"}) == (
        " on nodes with role=sampler, ray.io/accelerator-type=A100")
    assert shown({}) == ""
