"""The status message of a submitted job: what the dashboard's Jobs page and Ray's API say of it besides RUNNING.

Consumes a sentence, produces the message; waits for the cluster's head. Ray has no public call for it: this is the
client with which its own supervisor of the job writes there, before the driver begins and after it has ended.
"""

from __future__ import annotations

import json
import os
from typing import Any

ENOUGH = 10  # seconds for the head to answer


def submission() -> str:
    """The id under which this process was submitted as a job; "" where it was not."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return config.get("metadata", {}).get("job_submission_id", "")


async def say(job: str, message: str) -> None:
    """Make it the job's status message."""
    from ray._private.worker import global_worker
    from ray.dashboard.modules.job.common import JobInfoStorageClient, JobStatus

    worker: Any = global_worker
    await JobInfoStorageClient(worker.gcs_client).put_status(job, JobStatus.RUNNING, message, timeout=ENOUGH)
