"""One reward behind HTTP: GET /health, GET /reward, POST /score (docs/http_rewards.md).

Consumes requests, produces answers in msgpack and errors in plain text. An event loop in a thread of its own reads and
writes; the reward runs in the thread that calls `work`, one request at a time: the main one, since only there a
reward's timeout can interrupt it. Waits for a request's body, for its turn and for the reward, each with a deadline.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from aiohttp import web

from ddpo.errors import InputError, RewardError
from ddpo.types import Images, Scores
from rewards.wire import MEDIA, Description, Limits, WireError, pack_answer, pack_description, unpack_request
from rewards.worker import RewardWorker

GRACE = 30.0  # seconds that a scoring may go over its timeout before the server calls itself stuck
IDLE = 30.0  # seconds for a request's head to arrive
LEAVE = 5.0  # seconds to send the last answers
log = logging.getLogger("ddpo.serve")
noise = logging.getLogger("ddpo.serve.http")  # a traceback for every stranger who sends no HTTP: they could fill a disk
noise.setLevel(logging.CRITICAL)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Full(Exception):
    """No room for this request, or no time: the server is leaving."""


class Service:
    """A reward worker, and the requests that wait for it: at most `room`, counted from their first byte."""

    def __init__(self, worker: RewardWorker, limits: Limits, token: str, room: int) -> None:
        self.worker, self.limits, self.token, self.room = worker, limits, token, room
        self.jobs: SimpleQueue[tuple[Future[Scores], Images] | None] = SimpleQueue()
        self.stopping, self.waiting = False, 0
        self.began, self.latest = math.inf, 1.0  # when the scoring in hand began; how long the last one took

    def work(self) -> None:
        """Score, one request after the other, until `stop`."""
        while (job := self.jobs.get()) is not None:
            future, images = job
            if not self.stopping:
                self._score(future, images)
            elif future.set_running_or_notify_cancel():
                future.set_exception(Full("the server is leaving"))

    def stop(self) -> None:
        """Finish the request in hand and take no more; fit for a signal handler."""
        self.stopping = True
        self.jobs.put(None)

    def _score(self, future: Future[Scores], images: Images) -> None:
        if not future.set_running_or_notify_cancel():  # whoever asked has gone
            return
        self.began = time.monotonic()
        try:
            future.set_result(self.worker.score(images))
        except Exception as error:  # whoever asked is told; the next request may be a better one
            future.set_exception(error)
        finally:
            self.latest, self.began = time.monotonic() - self.began, math.inf

    def app(self) -> web.Application:
        """The three addresses."""
        app = web.Application(client_max_size=self.limits.bytes, middlewares=[self._guard])
        app.add_routes([web.get("/health", self._health), web.get("/reward", self._describe),
                        web.post("/score", self._answer)])
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """No request without the token, and none that ends in a traceback."""
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if self.token and request.path != "/health" and not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise web.HTTPUnauthorized(text="this server wants its token: Authorization: Bearer TOKEN",
                                       headers={"WWW-Authenticate": "Bearer"})
        try:
            return await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            log.error("a request failed: %s: %s", type(error).__name__, error)
            raise web.HTTPInternalServerError(text=f"the server failed: {type(error).__name__}: {error}") from None

    async def _health(self, request: web.Request) -> web.Response:
        overdue = time.monotonic() - self.began - self.worker.config.timeout
        if overdue > GRACE:
            raise web.HTTPServiceUnavailable(text=f"stuck: the reward is {overdue:.0f} s over its timeout")
        return web.Response(text="ok")

    async def _describe(self, request: web.Request) -> web.Response:
        config = self.worker.config
        described = pack_description(Description(self.worker.name, config.kind, config.timeout, self.limits))
        return web.Response(body=described, content_type=MEDIA)

    async def _answer(self, request: web.Request) -> web.Response:
        if self.stopping or self.waiting >= self.room:
            raise self._full("the server is leaving" if self.stopping else f"{self.waiting} requests are waiting")
        self.waiting += 1
        try:
            images = unpack_request(await self._body(request), self.limits)
        except WireError as error:
            raise web.HTTPBadRequest(text=f"the request is not one of the protocol: {error}") from None
        else:
            return web.Response(body=pack_answer(await self._scored(images)), content_type=MEDIA)
        finally:
            self.waiting -= 1

    async def _body(self, request: web.Request) -> bytes:
        limits, length = self.limits, request.content_length or 0
        if request.content_type != MEDIA or "Content-Encoding" in request.headers:
            raise web.HTTPUnsupportedMediaType(text=f"a request is {MEDIA}, not compressed")
        if length > limits.bytes:
            raise web.HTTPRequestEntityTooLarge(limits.bytes, length)
        try:
            async with asyncio.timeout(limits.seconds):
                return await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout(text=f"the body was not there within {limits.seconds:g} s") from None
        except web.RequestPayloadError as error:
            raise web.HTTPBadRequest(text=f"the body is broken: {error}") from None

    async def _scored(self, images: Images) -> Scores:
        """Wait for the turn and for the reward."""
        future: Future[Scores] = Future()
        self.jobs.put((future, images))
        patience = self.room * (self.worker.config.timeout + GRACE)
        try:
            async with asyncio.timeout(patience):
                return await asyncio.wrap_future(future)
        except Full as error:
            raise self._full(str(error)) from None
        except RewardError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from None
        except TimeoutError:
            raise web.HTTPGatewayTimeout(text=f"no score within {patience:g} s; the reward is stuck") from None

    def _full(self, why: str) -> web.HTTPException:
        wait = max(1, min(60, math.ceil(self.latest)))
        return web.HTTPServiceUnavailable(text=f"{why}; try again", headers={"Retry-After": str(wait)})


@contextmanager
def listening(service: Service, host: str, port: int) -> Iterator[str]:
    """Answer requests in the block, from a thread of its own; gives the address. Port 0 takes a free one."""
    runner = web.AppRunner(
        service.app(), handle_signals=False, access_log=None, logger=noise, handler_cancellation=True,
        keepalive_timeout=IDLE, lingering_time=LEAVE, shutdown_timeout=LEAVE, auto_decompress=False,
    )
    with _loop() as wait:
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{wait(_open(runner, host, port))}"
        finally:
            wait(runner.cleanup())


async def _open(runner: web.AppRunner, host: str, port: int) -> int:
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}.") from None
    return int(runner.addresses[0][1])


@contextmanager
def _loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """An event loop in a thread; gives what runs a coroutine there and waits for it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="http", daemon=True)
    thread.start()
    try:
        yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(4 * LEAVE)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LEAVE)
        loop.close()
