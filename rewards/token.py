"""The secret that a reward's server and its clients share. Consumes a file or the environment, never a command line,
which every user of a machine can read."""

from __future__ import annotations

import os
from pathlib import Path

from ddpo.errors import InputError

VARIABLE = "DDPO_REWARD_TOKEN"
SHORTEST = 16


def read_token(file: str, key: str) -> str:
    """The token of a file, else of the environment, else ""; `key` names the option in messages. Raises InputError."""
    if not file:
        return _usable(os.environ.get(VARIABLE, "").strip(), VARIABLE)
    try:
        token = Path(file).expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: cannot read a token from {file}: {error}.") from None
    if not token:
        raise InputError(f"{key}: {file} is empty. Make a token: openssl rand -hex 32 > {file}")
    return _usable(token, f"{key} ({file})")


def _usable(token: str, where: str) -> str:
    if token and (len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token):
        raise InputError(
            f"{where}: a token is {SHORTEST} or more ASCII letters and digits without blanks, so that it cannot be "
            "guessed and fits a header. Make one: openssl rand -hex 32"
        )
    return token
