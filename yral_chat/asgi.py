import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "yral_chat.settings")
django.setup(set_prefix=False)

from django.conf import settings  # noqa: E402
from django.core.exceptions import RequestAborted  # noqa: E402
from django.core.handlers.asgi import ASGIHandler, get_script_prefix  # noqa: E402
from django.core.signals import request_started  # noqa: E402
from django.db import close_old_connections  # noqa: E402
from django.urls import set_script_prefix  # noqa: E402

from yral_chat import errors  # noqa: E402
from yral_chat.bodies import PATIENCE, most_bytes  # noqa: E402
from yral_chat.checks import refuse_to_start  # noqa: E402
from yral_chat.startup import at_rest, serve, warm_up  # noqa: E402

with ThreadPoolExecutor(1) as outside:  # of the event loop, in which Django asks no database
    outside.submit(refuse_to_start).result()
warm_up()
serve()

PIECE = 64 * 1024
Event = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


async def lives(receive: Receive, send: Send) -> None:
    """At its end the server waits here, also for turns that nobody listens to any more."""
    while True:
        event = await receive()
        if event["type"] == "lifespan.shutdown":
            deadline = time.monotonic() + settings.GRACEFUL_TIMEOUT
            while not at_rest() and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


class Handler(ASGIHandler):
    """A request has one thread till its answer is there, as under WSGI, and isn't broken off when its client hangs up.
    Django's own hops between threads in each middleware, and forgets the connection to the database of who left."""

    threads = ThreadPoolExecutor(settings.WEB_THREADS, thread_name_prefix="request")

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def handle(self, scope: Event, receive: Receive, send: Send) -> None:
        body = Body(receive, most_bytes(scope["path"]))
        try:
            file = await self.read_body(body.receive)
        except RequestAborted:
            if body.has_stalled:
                await self.send_response(errors.plain("bad_request", 400, {"Connection": "close"}), send)
            return
        run = asyncio.get_running_loop().run_in_executor
        response = await run(self.threads, self._answer, scope, file)
        if body.is_unread:
            response["Connection"] = "close"
        try:
            if response.streaming:
                if not response.is_async:
                    response.block_size = PIECE  # of Django's FileResponse
                    response.streaming_content = self._awaited(response.streaming_content)
                await self._send_till_it_hangs_up(response, receive, send)
            else:
                await self.send_response(response, send)
        finally:
            if response.streaming:
                await run(self.threads, response.close)
            file.close()

    def _answer(self, scope: Event, file: IO[bytes]) -> Any:
        """Closed, unless it is a stream; that asks no database."""
        set_script_prefix(get_script_prefix(scope))
        request_started.send(sender=self.__class__, scope=scope)
        request, refused = self.create_request(scope, file)
        response: Any = refused if request is None else self.get_response(request)
        if response.streaming:
            close_old_connections()
        else:
            response.close()
        return response

    async def _awaited(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Of a file, say: Django would read all of them into memory first."""
        run = asyncio.get_running_loop().run_in_executor
        while (piece := await run(self.threads, next, pieces, None)) is not None:
            yield piece

    async def _send_till_it_hangs_up(self, response: Any, receive: Receive, send: Send) -> None:
        async def hang_up() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass  # what is left of a body that nobody reads
            sending.cancel()

        async with asyncio.TaskGroup() as both:
            sending = both.create_task(self.send_response(response, send))
            listening = both.create_task(hang_up())
            sending.add_done_callback(lambda _: listening.cancel())


class Body:
    """Django writes a whole body to disk before it looks at the request. It gets one byte more than is allowed, which
    is enough for a 413; as much again is read, for who is cut off in the middle of writing never sees the answer.
    A client that sends nothing for PATIENCE has hung up."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self.most = receive, most
        self.size = 0
        self.is_unread = self.has_stalled = False

    async def receive(self) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(PATIENCE):
                event = await self._receive()
        except TimeoutError:
            self.has_stalled = True
            return {"type": "http.disconnect"}
        if event["type"] == "http.disconnect":
            return event
        piece, more = event.get("body", b""), event.get("more_body", False)
        taken = piece[: max(0, self.most + 1 - self.size)]
        self.size += len(piece)
        self.is_unread = more and self.size > 2 * self.most
        return {"type": "http.request", "body": taken, "more_body": more and not self.is_unread}


handler = Handler()


async def application(scope: Event, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lives(receive, send)
    elif scope["type"] == "websocket":  # there are none: 403
        await receive()
        await send({"type": "websocket.close"})
    else:
        await handler(scope, receive, send)


def believe_no_proxy_yet() -> None:
    """uvicorn lets anybody on this machine forge addresses, unless it was started with --no-proxy-headers.

    It looks this name up after it has imported us. Which proxies are believed is decided by yral_chat/proxies.py.
    """
    if uvicorn := sys.modules.get("uvicorn.config"):
        uvicorn.ProxyHeadersMiddleware = lambda app, **kwargs: app  # type: ignore[attr-defined]


believe_no_proxy_yet()
