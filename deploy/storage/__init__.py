"""Run folders at a URI: worked on here, mirrored there in the background, brought back to go on or to be read.

Consumes a URI that fsspec knows, produces a local folder; waits, with deadlines, for the storage.

    home.py     where a command works         remote.py   a folder at a URI
    mirror.py   what changed goes there       claim.py    one driver a run
"""

from deploy.storage.home import here, home

__all__ = ["here", "home"]
