"""The Slurm script on one node: as Slurm would run it, but for `srun`, which is a stand-in that starts its command."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from terminal import result

ROOT = Path(__file__).resolve().parents[2]
# symmetric-run ends with `ray stop`, which ends every Ray that it sees: here it sees none but its own.
APART = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nexec "$@"\n'


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of one node."""
    if subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip("no process namespace may be made here, and `ray stop` would end other clusters")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "1", "DDPO_VENV": sys.prefix}
    paths = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | job | paths


@pytest.mark.ray
def test_the_script_trains_on_a_cluster_of_its_own_and_ends_it(slurm, run_file, tmp_path):
    script = ROOT / "deploy/slurm/train.sbatch"
    with tempfile.TemporaryDirectory(prefix="ddpo-", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [*APART, "bash", script, run_file, "learner.cpus=0"], cwd=tmp_path, env=slurm | {"RAY_TMPDIR": folder},
            timeout=280, capture_output=True, text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Stopped all" in done.stdout and result(tmp_path / "runs/small")["steps"] == 2
