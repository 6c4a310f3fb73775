"""A run on a cluster, seen and steered from outside.

Consumes the dashboard's address, or that of a node; produces jobs and what they say; waits for both with deadlines.

    submission.py   a run as a job      following.py   what it prints      job.py   what is different within a job
    mailbox.py      where a run says how it stands and hears wishes        steer.py   status, scale, stop
"""
