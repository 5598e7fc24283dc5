"""Requests are UTF-8, and their paths begin with SCRIPT_NAME once.

Django takes the charset of a Content-Type for that of the whole request, and some of those that Python knows ("hex")
crash it before any middleware could answer. A proxy may take SCRIPT_NAME off the path or leave it there; Django's two
kinds of request each know one of the two ways.
"""

import re
from typing import Any

from django.conf import settings
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.utils.http import parse_header_parameters


class Utf8:
    content_type: str
    content_params: dict[str, str]

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        self.content_type, self.content_params = parse_header_parameters(meta.get("CONTENT_TYPE", ""))


class Utf8WSGIRequest(Utf8, WSGIRequest):  # type: ignore[misc]
    def __init__(self, environ: dict[str, Any]) -> None:
        environ["PATH_INFO"] = without_prefix(environ.get("PATH_INFO", ""))
        super().__init__(environ)


class Utf8ASGIRequest(Utf8, ASGIRequest):  # type: ignore[misc]
    def __init__(self, scope: dict[str, Any], body_file: Any) -> None:
        """uvicorn takes the whole address of `GET http://host/path` for the path."""
        super().__init__({**scope, "path": re.sub("^https?://[^/]*", "", scope["path"])}, body_file)
        self.path_info = self.META["PATH_INFO"] = self.path_info or "/"
        if prefix := settings.SCRIPT_NAME:
            self.path = prefix + self.path_info


def without_prefix(path: str) -> str:
    prefix = settings.SCRIPT_NAME
    return path.removeprefix(prefix) if prefix and f"{path}/".startswith(f"{prefix}/") else path


WSGIHandler.request_class = Utf8WSGIRequest
ASGIHandler.request_class = Utf8ASGIRequest
