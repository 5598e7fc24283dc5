import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "yral_chat.settings")
django = get_asgi_application()

from django.conf import settings  # noqa: E402

from yral_chat import errors  # noqa: E402
from yral_chat.bodies import most_bytes  # noqa: E402
from yral_chat.checks import refuse_to_start  # noqa: E402
from yral_chat.middleware import sane_id  # noqa: E402
from yral_chat.startup import warm_up  # noqa: E402

# Under ASGI each request has a thread of its own, which dies with it: a connection that is kept would be lost.
settings.DATABASES["default"]["CONN_MAX_AGE"] = 0
with ThreadPoolExecutor(1) as outside:  # of the event loop, in which Django asks no database
    outside.submit(refuse_to_start).result()
warm_up()

Event = dict[str, Any]


class BodyLimit:
    """Django writes the whole body to disk before it looks at the request; so under ASGI it is limited here.

    As much again is read before the 413.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Event, receive: Callable[[], Awaitable[Event]], send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = most_bytes(scope["path"])
        size = 0

        async def bounded() -> Event:
            nonlocal size
            event = await receive()
            size += len(event.get("body", b""))
            while most < size <= 2 * most and event.get("more_body"):
                event = await receive()
                size += len(event.get("body", b""))
            return {"type": "http.disconnect"} if size > most else event

        await self.app(scope, bounded, send)
        if size > most:
            await self._refuse(scope, send)

    @staticmethod
    async def _refuse(scope: Event, send: Any) -> None:
        response = errors.too_large()
        given = dict(scope["headers"]).get(b"x-correlation-id", b"").decode("latin-1")
        headers = [
            (b"x-correlation-id", sane_id(given).encode()),
            (b"x-api-version", b"v1"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(response.content)).encode()),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": response.content})


application = BodyLimit(django)
