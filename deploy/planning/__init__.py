"""`ddpo plan`: what a run needs and how long it will take, before any GPU is paid for.

Consumes a run, and what is known of a cluster and of stage times. Produces a table, or JSON; waits for nothing but the
dashboard of a cluster.

    plan.py       the whole                            table.py   for a person
    memory.py     and FLOP, on torch's meta device     processes.py   one of every role, against GPUs' sizes
    compute.py    FLOP of a step, seconds on GPUs
    room.py       who would sit where                  nodes.py   of a cluster, or of a cluster file
    measured.py   stage times of a finished run        network.py   bytes of a step
"""
