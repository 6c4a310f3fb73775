"""How it runs: the command line, the run folder, the log, the cluster, the report, the recipes."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - of a cluster, perhaps: a job runs with its Python, not the submitter's
    raise SystemExit(
        f"ddpo: this is Python {sys.version_info[0]}.{sys.version_info[1]}, and 3.11 or newer is needed. Make the "
        "environment, or the cluster's image, with one (README)."
    )
