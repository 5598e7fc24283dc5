"""Before the first request: what would otherwise be imported or made in it, by hundreds of threads at once."""

import gc
from importlib import import_module

from django.apps import apps
from django.test import RequestFactory
from django.urls import get_resolver, resolve

from yral_chat import ai, metrics
from yral_chat.json import dumps
from yral_chat.operations import publish_database
from yral_chat.postgresql import Connection

PATIENCE = 20.0  # seconds that a statement may take, as long as SQLite waits for its lock
FIRST_REQUEST = (
    "django.contrib.messages.storage.fallback",
    "django.contrib.sessions.serializers",
    "django.db.models.sql.compiler",
)


def serve() -> None:
    """In each process that answers requests, after any fork: what works beside them."""
    Connection.patience = PATIENCE
    for app in apps.get_app_configs():
        getattr(app, "serve", lambda: None)()
    metrics.Publisher(publish_database).start()


def at_rest() -> bool:
    """Whether a process that answers no requests any more may end."""
    return all(getattr(app, "at_rest", lambda: True)() for app in apps.get_app_configs())


def warm_up() -> None:
    """Makes no connection: a server may fork after it."""
    ai.warm_up()
    for app in apps.get_app_configs():
        getattr(app, "warm_up", lambda: None)()
    assert get_resolver().url_patterns
    for path in ("/", "/openapi.json"):  # whose first requests, if they come at once, crash over half-loaded extensions
        resolve(path).func(RequestFactory().get(path)).render()
    dumps({})
    for module in FIRST_REQUEST:
        import_module(module)
    gc.collect()
    gc.freeze()  # what is here now stays: no collection looks at it again, and forks share its pages
