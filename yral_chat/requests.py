"""Requests are UTF-8. Django takes the charset of a Content-Type for that of the whole request, and some of those that
Python knows ("hex") crash it before any middleware could answer."""

from typing import Any

from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.utils.http import parse_header_parameters


class Utf8:
    content_type: str
    content_params: dict[str, str]

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        self.content_type, self.content_params = parse_header_parameters(meta.get("CONTENT_TYPE", ""))


class Utf8WSGIRequest(Utf8, WSGIRequest):  # type: ignore[misc]
    pass


class Utf8ASGIRequest(Utf8, ASGIRequest):  # type: ignore[misc]
    pass


WSGIHandler.request_class = Utf8WSGIRequest
ASGIHandler.request_class = Utf8ASGIRequest
