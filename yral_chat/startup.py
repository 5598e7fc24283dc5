"""Before the first request: what would otherwise be imported or made in it, by hundreds of threads at once."""

import gc
from importlib import import_module

from django.apps import apps
from django.test import RequestFactory
from django.urls import get_resolver, resolve

from yral_chat import ai
from yral_chat.json import dumps

FIRST_REQUEST = (
    "django.contrib.messages.storage.fallback",
    "django.contrib.sessions.serializers",
    "django.db.models.sql.compiler",
)


def warm_up() -> None:
    """Makes no connection: a server may fork after it."""
    ai.warm_up()
    for app in apps.get_app_configs():
        getattr(app, "warm_up", lambda: None)()
    assert get_resolver().url_patterns
    view = resolve("/").func
    view(RequestFactory().get("/")).render()
    dumps({})
    for module in FIRST_REQUEST:
        import_module(module)
    gc.collect()
    gc.freeze()  # what is here now stays: no collection looks at it again, and forks share its pages
