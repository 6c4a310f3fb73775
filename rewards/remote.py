"""kind = "http": a reward that a server computes, on another machine, in another environment (docs/http_rewards.md).

Consumes images and prompts, produces what the server says of them. Waits for the server, within the reward's timeout
and a little less, so that the reason is told and not only that time was up. A server that is not there, or busy, is
asked again, with pauses that grow; one that answers nothing, or an error, gives no score; one whose answer is not what
the protocol says raises ContractError, which stops the run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from ddpo.config import RewardConfig, Run
from ddpo.errors import ContractError, InputError, ServerError
from ddpo.types import Images, Scores
from rewards.wire import (
    MEDIA,
    WORDS,
    Description,
    WireError,
    one_line,
    pack_request,
    unpack_answer,
    unpack_description,
)

CONNECT = 10.0  # seconds for one try to connect
PROBE = 15.0  # seconds for a server to say what it is, before a run starts
MARGIN = 0.05  # share of a reward's timeout that is left to tell why
CUTS = 3  # connections that may break in the middle: more, and the images themselves may kill the server
LONGEST_PAUSE = 10.0
SILENT = "it was asked and said nothing"


class Again(Exception):
    """A try that may be followed by another; `pause` is how long the server asks to be left alone."""

    def __init__(self, why: str, pause: float = 0.0, cut: bool = False) -> None:
        super().__init__(why)
        self.pause, self.cut = pause, cut


class Server:
    """A server by its address."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Content-Type": MEDIA, "Accept-Encoding": "identity"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"

    async def score(self, requests: Sequence[Images], seconds: float) -> list[Scores]:
        """One answer per request, all of them within so many seconds."""
        bodies = [(images.ids, pack_request(images)) for images in requests]
        answers = await self._ask("POST", "/score", [body for _, body in bodies], seconds)
        return [self._read(lambda a=answer, i=ids: unpack_answer(a, i))
                for answer, (ids, _) in zip(answers, bodies, strict=True)]

    async def describe(self, seconds: float) -> Description:
        """What the server says of itself."""
        [answer] = await self._ask("GET", "/reward", [b""], seconds)
        return self._read(lambda: unpack_description(answer))

    def _read(self, unpack: Any) -> Any:
        try:
            return unpack()
        except WireError as error:
            raise ContractError(f"the answer of {self.url} is not one of the protocol: {error}") from None

    async def _ask(self, method: str, path: str, bodies: Sequence[bytes], seconds: float) -> list[bytes]:
        """The bodies of the answers; raises ServerError where they do not come in time."""
        last = [SILENT]
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT)  # the total is asyncio's, over all tries
        try:
            async with (
                asyncio.timeout(seconds),
                aiohttp.ClientSession(headers=self.headers, timeout=limits, auto_decompress=False) as session,
            ):
                return [await self._patiently(session, method, path, body, last) for body in bodies]
        except TimeoutError:
            raise ServerError(f"{self.url} gave no answer within {seconds:.3g} s: {last[0]}") from None

    async def _patiently(
        self, session: aiohttp.ClientSession, method: str, path: str, body: bytes, last: list[str]
    ) -> bytes:
        """Try until there is an answer; the caller's clock ends it, and `last` tells why it was not enough."""
        tries, cuts, last[0] = 0, 0, SILENT
        while True:
            try:
                return await self._once(session, method, path, body)
            except Again as again:
                tries, cuts = tries + 1, cuts + again.cut
                last[0] = f"{again} ({tries} {'try' if tries == 1 else 'tries'})"
                if cuts == CUTS:
                    raise ServerError(f"{self.url}: {last[0]}") from None
                await asyncio.sleep(max(again.pause, _pause(tries)))

    async def _once(self, session: aiohttp.ClientSession, method: str, path: str, body: bytes) -> bytes:
        data = BytesIO(body) if body else None  # a large body as bytes would be sent in one piece
        try:
            async with session.request(method, self.url + path, data=data, allow_redirects=False) as response:
                content = await _content(response)
        except aiohttp.ClientSSLError as error:
            raise ServerError(f"{self.url}: no safe connection: {one_line(str(error))}") from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Again(f"it is not there: {one_line(str(error))}") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise Again(f"the connection broke: {one_line(str(error)) or type(error).__name__}", cut=True) from None
        except (aiohttp.ClientError, ValueError) as error:
            kind = type(error).__name__
            raise ServerError(f"{self.url} does not speak HTTP: {kind}: {one_line(str(error))}") from None
        return self._judged(response, content)

    def _judged(self, response: aiohttp.ClientResponse, content: bytes) -> bytes:
        said = f"{self.url} answers {response.status}: {one_line(content)}"
        match response.status:
            case 200 if response.content_type == MEDIA:
                return content
            case 200:
                raise ContractError(f"{said} ({response.content_type}, not {MEDIA}). Is it a reward's server?")
            case 422:
                raise ContractError(said)
            case 502 | 503:
                raise Again(said, _seconds(response.headers.get("Retry-After", "")))
            case 401 | 403:
                raise ServerError(f"{said}. Its token comes from token_file, or DDPO_REWARD_TOKEN in the environment.")
        raise ServerError(said)


class Remote:
    """r(x_0, c) = what the server says; the chunk goes in requests of `batch` images, one after the other."""

    def __init__(self, config: RewardConfig, token: str) -> None:
        self.server, self.batch = Server(config.url, token), config.batch
        self.seconds = config.timeout * (1 - MARGIN)

    def __call__(
        self, images_BYX3: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[list[float | None], dict[str, list[Any]]]:
        """Value or None per image; info: the server's own, and why there is no score."""
        rows, size = tuple(range(len(images_BYX3))), self.batch or len(images_BYX3)
        cuts = [slice(start, start + size) for start in range(0, len(rows), size)]
        requests = [Images(rows[c], tuple(prompts[c]), tuple(metadata[c]), images_BYX3[c]) for c in cuts]
        return _joined(asyncio.run(self.server.score(requests, self.seconds)), len(rows))


def reach(run: Run, tokens: Mapping[str, str], side: int) -> None:
    """Ask every server whether it is there and takes this run's images, pictures of `side` pixels; raises one
    InputError that names the keys."""
    problems = []
    for name, reward in run.rewards.items():
        if reward.kind == "http":
            try:
                found = asyncio.run(Server(reward.url, tokens[name]).describe(PROBE))
                problems += [f"rewards.{name}.{problem}" for problem in _misfits(reward, found, run.actors.batch, side)]
            except (ServerError, ContractError) as error:
                problems.append(f"rewards.{name}.url: {error}")
    if problems:
        raise InputError("\n".join(problems))


def _misfits(reward: RewardConfig, found: Description, chunk: int, side: int) -> list[str]:
    problems, limits = [], found.limits
    images = min(reward.batch or chunk, chunk)
    if images > limits.images:
        problems.append(f"batch: a request would have {images} images; {reward.url} takes {limits.images} at most. "
                        f"Write batch = {limits.images}")
    if side > limits.side:
        problems.append(f"url: {reward.url} takes pictures of {limits.side} pixels at most, the model draws {side}. "
                        "Raise the server's --side")
    elif images * side * side * 3 + WORDS > limits.bytes and images <= limits.images:
        problems.append(f"batch: {images} pictures of {side} pixels are more than the {limits.bytes} bytes that "
                        f"{reward.url} takes. Write a smaller batch, or raise the server's --megabytes")
    return problems


async def _content(response: aiohttp.ClientResponse) -> bytes:
    """The body of an answer, which may not be larger than an answer can be."""
    content = bytearray()
    async for part in response.content.iter_chunked(2**16):
        content += part
        if len(content) > WORDS:
            raise ContractError(f"the answer of {response.url} is longer than {WORDS} bytes")
    return bytes(content)


def _joined(answers: Sequence[Scores], count: int) -> tuple[list[float | None], dict[str, list[Any]]]:
    """The parts of a chunk as one: rows count through the chunk, so ids tell where everything belongs."""
    values = {row: value for answer in answers for row, value in answer.values.items()}
    reasons = {row: reason for answer in answers for row, reason in answer.failures.items()}
    known: dict[str, dict[int, Any]] = {}
    for answer in answers:
        for key, column in answer.info.items():
            known.setdefault(key, {}).update(zip(answer.ids, column, strict=True))
    info = {key: [column.get(row) for row in range(count)] for key, column in known.items()}
    return [values.get(row) for row in range(count)], info | {"missing": [reasons.get(row) for row in range(count)]}


def _pause(tries: int) -> float:
    """Seconds before the next try: 0.2, 0.4, ... 10, give or take a half, so that many clients do not come at once."""
    return min(0.1 * 2**min(tries, 10), LONGEST_PAUSE) * random.uniform(0.5, 1.5)


def _seconds(retry_after: str) -> float:
    return float(min(int(retry_after), 60)) if retry_after.isascii() and retry_after.isdigit() else 0.0
