"""Before the first request: what would otherwise be imported or made in it, by hundreds of threads at once."""

import gc

from django.test import RequestFactory
from django.urls import get_resolver, resolve

from yral_chat import ai
from yral_chat.json import dumps


def warm_up() -> None:
    """Makes no connection: a server may fork after it."""
    ai.warm_up()
    assert get_resolver().url_patterns
    view = resolve("/").func
    view(RequestFactory().get("/")).render()
    dumps({})
    gc.collect()
    gc.freeze()  # what is here now stays: no collection looks at it again, and forks share its pages
