"""The files that make clusters: Ray's and KubeRay's schemas, labels that the recipes ask for, commands that exist."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kuberay
import pytest
import yaml
from ray_cli import known

from ddpo.config import Run
from deploy import compare, recipes
from deploy.options import read
from deploy.placing import ACCELERATOR, ROLE, labels, wanted

ROOT = Path(__file__).resolve().parents[2]
CLOUDS = ("ray_cluster.yaml", "deploy/ray_cluster.gcp.yaml")
ON_PREMISES = "deploy/ray_cluster.onprem.yaml"
KUBERAY = ("deploy/kuberay/raycluster.yaml", "deploy/kuberay/rayjob.yaml")
OTHERS = ("deploy/Dockerfile", "deploy/slurm/train.sbatch")
ELSEWHERE = {  # test_board.py, and one test each for all of a kind in test_recipes.py and test_compare.py
    "deploy/grafana/ddpo.json", *(f"deploy/recipes/{name}.toml" for name in recipes.names()),
    *(f"deploy/comparisons/{name}.toml" for name in compare.names()),
}
RUNS = [recipes.find(name, []) for name in recipes.names()]


def text(file: str) -> str:
    return (ROOT / file).read_text()


def launched(file: str) -> dict[str, Any]:
    """A file of `ray up` as Ray reads it, with its defaults."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load(text(file)))


def objects(file: str) -> dict[str, Any]:
    """The objects of a Kubernetes file, by kind."""
    return {part["kind"]: part for part in yaml.safe_load_all(text(file))}


def cluster_spec(file: str) -> dict[str, Any]:
    found = objects(file)
    return found["RayJob"]["spec"]["rayClusterSpec"] if "RayJob" in found else found["RayCluster"]["spec"]


def node_types(file: str) -> dict[str, Any]:
    """All node types with their resources, labels and limits; those of Kubernetes as Ray's autoscaler reads them."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    if file in CLOUDS:
        return launched(file)["available_node_types"]
    cluster = {"metadata": {"name": "ddpo", "namespace": "default"}, "spec": cluster_spec(file)}
    return _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]


def head_type(file: str) -> str:
    return "head" if file in CLOUDS else "headgroup"


def holds(part: dict[str, Any], wants: Any) -> bool:
    """Whether a node of this type may get such a worker, and has room for it."""
    labelled = labels(wants, roles=True).items() <= part["labels"].items()
    return labelled and part["resources"].get("CPU", 0) >= wants.cpus and part["resources"].get("GPU", 0) >= wants.gpus


def test_no_file_is_without_a_test():
    found = [ROOT / "ray_cluster.yaml", *(ROOT / "deploy").rglob("*")]
    ours = [path for path in found if path.is_file() and path.suffix not in (".py", ".pyc")]
    here = {*CLOUDS, ON_PREMISES, *KUBERAY, *OTHERS}
    assert {str(path.relative_to(ROOT)) for path in ours} == here | ELSEWHERE


@pytest.mark.parametrize("file", [*CLOUDS, ON_PREMISES])
def test_ray_takes_the_file_and_refuses_a_misspelt_one(file):
    from ray.autoscaler._private.util import validate_config

    validate_config(launched(file))
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(launched(file) | {"idle_timeout": 5})


@pytest.mark.parametrize("file", KUBERAY)
def test_kubernetes_takes_the_file_and_a_misspelt_one_fails(file):
    for kind, part in objects(file).items():
        jsonschema.validate(part, kuberay.SCHEMAS[kind])
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(cluster_spec(file) | {"authOption": {}}, kuberay.CLUSTER_SPEC)


@pytest.mark.parametrize(("where", "key", "value"), [
    (("metadata",), "name", "DDPO_1"),
    (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), "labels", "role=head"),
    (("spec", "rayClusterSpec", "headGroupSpec", "labels"), "role", "a head"),
    (("spec", "rayClusterSpec"), "rayVersion", None),
    (("spec",), "shutdownAfterJobFinishes", None),
])
def test_what_kuberays_operator_would_refuse_fails(where, key, value):
    job = objects(KUBERAY[1])["RayJob"]
    part = functools.reduce(dict.__getitem__, where, job)
    if value is None:
        del part[key]
    else:
        part[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, kuberay.SCHEMAS["RayJob"])


@pytest.mark.parametrize("file", [*CLOUDS, *KUBERAY])
def test_every_worker_of_every_recipe_has_nodes_to_go_to(file):
    types = node_types(file).values()
    for run in RUNS:
        for pool, wants in wanted(run).items():
            found = [part for part in types if part["max_workers"] and holds(part, wants)]
            assert found, f"{run.name}: no node type for {pool}, which wants {labels(wants, roles=True)}"


@pytest.mark.parametrize("file", [*CLOUDS, *KUBERAY])
def test_the_head_works_for_nobody_and_nothing_is_paid_for_while_no_run_is_there(file):
    types = node_types(file)
    head = types.pop(head_type(file))
    assert head["labels"] == {ROLE: "head"} and head["resources"]["CPU"] == 0 and not head["resources"].get("GPU")
    assert all(part["min_workers"] == 0 for part in types.values())
    for part in types.values():
        assert bool(part["resources"].get("GPU")) == (ACCELERATOR in part["labels"])


@pytest.mark.parametrize("file", CLOUDS)
def test_spot_is_for_what_is_drawn_or_scored_again(file):
    for name, part in launched(file)["available_node_types"].items():
        assert bool(re.search("spot|preemptible", str(part["node_config"]))) == (name not in ("head", "learner"))


@pytest.mark.parametrize("file", [*CLOUDS, ON_PREMISES])
def test_nodes_get_the_pinned_dependencies_and_the_token(file):
    config = yaml.safe_load(text(file))
    mounts, options = config["file_mounts"], " ".join(config["docker"]["run_options"])
    (pinned,) = re.findall(r"pip install .*-r (\S+)", " ".join(config["setup_commands"]))
    assert (ROOT / mounts[pinned]).read_text() == text("constraints.txt")
    assert "-e RAY_AUTH_MODE=token" in options
    (token,) = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", options)
    assert mounts[token] == "~/.ray/auth_token"


@pytest.mark.parametrize("file", [*CLOUDS, ON_PREMISES])
def test_the_ray_commands_exist(file):
    config = yaml.safe_load(text(file))
    lines = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    commands = [part.strip() for line in lines for part in line.split(";") if part.strip().startswith("ray ")]
    assert len(commands) == 4
    for command in commands:
        known(shlex.split(command)[1:])


def test_machines_of_ones_own_give_themselves_every_role():
    config = yaml.safe_load(text(ON_PREMISES))
    (start,) = [line for line in config["worker_start_ray_commands"] if "ray start" in line]
    roles = {own_role(start, address) for address in config["provider"]["worker_ips"]}
    assert roles == {"sampler", "learner", "reward-gpu", "reward-cpu"}
    assert own_role(start, "10.0.0.110") == "reward-cpu"  # no prefix of another's address


def own_role(command: str, address: str) -> str:
    """What a machine with this address says when it starts, in a shell where `ray` only says what it was told."""
    script = f'hostname() {{ echo "{address} 172.17.0.1"; }}\nray() {{ echo "$@"; }}\n{command}'
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=10).stdout
    return said.strip().rpartition(f"--labels={ROLE}=")[2]


def test_one_image_and_one_ray_everywhere():
    pins = dict(line.split("==") for line in text("constraints.txt").splitlines() if "==" in line)
    (base,) = re.findall(r"^FROM (\S+)$", text("deploy/Dockerfile"), re.MULTILINE)
    assert base == f"rayproject/ray:{pins['ray']}-py311-gpu"
    assert {yaml.safe_load(text(file))["docker"]["image"] for file in (*CLOUDS, ON_PREMISES)} == {base}
    assert {cluster_spec(file)["rayVersion"] for file in KUBERAY} == {pins["ray"]}


def test_the_image_has_pinned_dependencies_and_nothing_of_the_program():
    lines = [line for line in text("deploy/Dockerfile").splitlines() if line and not line.startswith(("#", "FROM"))]
    copy, install = lines
    assert copy.split() == ["COPY", "constraints.txt", install.split()[-1]]
    assert re.fullmatch(r"RUN pip install --no-cache-dir -r \S+", install)


def test_every_dependency_is_pinned():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    names = {re.split(r"[\[<>=]", line)[0].lower() for line in project["dependencies"]}
    assert names <= {line.split("==")[0].lower() for line in text("constraints.txt").splitlines()}


@pytest.mark.parametrize("file", KUBERAY)
def test_kuberay_scales_by_labels_and_lets_nobody_in_without_the_token(file):
    spec = cluster_spec(file)
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"


def test_a_job_has_the_same_cluster_and_each_try_resumes_from_the_volume():
    job, runs = objects(KUBERAY[1])["RayJob"]["spec"], objects(KUBERAY[0])
    assert cluster_spec(KUBERAY[1]) == cluster_spec(KUBERAY[0])
    options = trained(job["entrypoint"])
    assert options.resume == "auto" and job["backoffLimit"] >= 1 and job["shutdownAfterJobFinishes"]
    pod = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,), (volume,) = pod["containers"][0]["volumeMounts"], pod["volumes"]
    assert str(options.runs) == mount["mountPath"] and mount["name"] == volume["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == runs["PersistentVolumeClaim"]["metadata"]["name"]
    assert yaml.safe_load(job["runtimeEnvYAML"])["working_dir"].endswith(".zip")


def trained(command: str) -> Any:
    """The options of `python -m deploy train ...`; its recipe is one that ships."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "deploy"]
    options = read(words[3:])
    assert isinstance(recipes.find(options.words[0], options.words[1:]), Run)
    return options


def test_the_slurm_script_is_a_script_and_its_commands_exist():
    from ray.scripts.symmetric_run import symmetric_run

    path = ROOT / "deploy/slurm/train.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)
    (line,) = re.findall(r"^srun .*", path.read_text().replace("\\\n", " "), re.MULTILINE)
    start, wrapped = line.replace('"$@" --resume', "demo actors.count=4 --resume").split(" -- ")
    given = [word.partition("=")[0] for word in start.partition("symmetric-run")[2].split() if word.startswith("--")]
    assert given and set(given) <= {option for part in symmetric_run.params for option in part.opts}
    assert trained(wrapped[wrapped.index("python -m") :].strip()).resume == "auto"
