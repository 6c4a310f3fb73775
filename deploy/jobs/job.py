"""What is different where `ddpo train` is a submitted job: where its runs are, and its status message, which is what
the dashboard's Jobs page and Ray's API say of it besides RUNNING.

Consumes a sentence, produces the message; waits for the cluster's head. Ray has no public call for it: this is the
client with which its own supervisor of the job writes there, before the driver begins and after it has ended.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ENOUGH = 10  # seconds for the head to answer


def submission() -> str:
    """The id under which this process was submitted as a job; "" where it was not."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return config.get("metadata", {}).get("job_submission_id", "")


def root() -> str:
    """Where run folders are, a folder or a URI: DDPO_RUNS, else runs. A job's working directory is a copy that goes
    with the job, so that a job's are in ~/ddpo-runs of the machine on which its driver runs."""
    return os.environ.get("DDPO_RUNS", "") or (str(Path.home() / "ddpo-runs") if submission() else "runs")


async def say(job: str, message: str) -> None:
    """Make it the job's status message."""
    from ray._private.worker import global_worker
    from ray.dashboard.modules.job.common import JobInfoStorageClient, JobStatus

    worker: Any = global_worker
    await JobInfoStorageClient(worker.gcs_client).put_status(job, JobStatus.RUNNING, message, timeout=ENOUGH)
