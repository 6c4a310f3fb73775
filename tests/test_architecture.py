"""The rooms: who may import whom, and what a client must not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("ddpo", "actors", "rewards", "learner", "deploy")
MAY_IMPORT = {
    "ddpo": {"ddpo"},
    "actors": {"actors", "ddpo"},
    "rewards": {"rewards", "ddpo"},
    "learner": {"learner", "ddpo"},
    "deploy": set(ROOMS),
}
MAY_IMPORT_RAY = {"learner/ray_group.py", "learner/ray_rank.py"}


def imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room):
    for path in (ROOT / room).rglob("*.py"):
        assert imports(path) & set(ROOMS) <= MAY_IMPORT[room], path


def test_ray_is_imported_in_the_pools_and_deploy_only():
    for room in ROOMS[:-1]:
        for path in (ROOT / room).rglob("*.py"):
            if "ray" in imports(path):
                assert str(path.relative_to(ROOT)) in MAY_IMPORT_RAY


def test_nothing_is_unpickled():
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert not imports(path) & {"pickle", "cloudpickle", "dill", "joblib"}, path
            loads = re.findall(r"torch\.load\(.*", path.read_text())  # of the published aesthetic head, tensors alone
            assert all(load.endswith("weights_only=True)") for load in loads), path


def test_a_client_needs_no_torch():
    code = (
        "import sys, ddpo.config, ddpo.types, ddpo.base, ddpo.weights, rewards.worker\n"
        "import deploy.__main__, deploy.recipes, deploy.prepare, deploy.report, deploy.publish, deploy.audit\n"
        "import deploy.planning.plan, deploy.convert\n"
        "sys.exit(' '.join({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
