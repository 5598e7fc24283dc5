"""JSON on the wire: read strictly, written from plain dicts without a field object per value."""

import datetime as dt
import json
from collections.abc import Mapping
from typing import IO, Any

import orjson
from django.utils.encoding import force_str
from django.utils.functional import Promise
from rest_framework.exceptions import NotAcceptable, ParseError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from yral_chat.bodies import check_length


def iso(moment: dt.datetime) -> str:
    """UTC with microseconds, always, and an offset: 2026-01-31T09:00:00.000000+00:00."""
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")


def _otherwise(value: object) -> Any:
    if isinstance(value, dt.datetime):
        return iso(value)
    if isinstance(value, Promise):
        return force_str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)


def dumps(data: object, options: int = 0) -> bytes:
    return orjson.dumps(data, _otherwise, orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS | options)


class FastJSONRenderer(BaseRenderer):
    media_type = "application/json"
    format = "json"
    charset = None

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> bytes:
        if data is None:
            return b""
        return dumps(data, orjson.OPT_INDENT_2 if (renderer_context or {}).get("indent") else 0)


class StrictJSONParser(BaseParser):
    """NaN, Infinity, lone surrogates, bad UTF-8 and nesting deeper than 1,000 are malformed: 400."""

    media_type = "application/json"
    renderer_class = FastJSONRenderer  # with which the pages of development fill their forms

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        check_length(stream)
        try:
            body = stream.read()
        except ValueError as exc:  # under ASGI, Django closes the body when the client hangs up
            raise ParseError("The client hung up.") from exc
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError as exc:
            raise ParseError(f"The body is not valid JSON (line {exc.lineno}, column {exc.colno}).") from exc
        if isinstance(data, dict) and any(type(value) is float for value in data.values()):
            return json.loads(body, parse_float=Number, parse_int=_whole)
        return data


def _whole(text: str) -> "int | Number":
    return int(text) if len(text) < 20 else Number(text)


class Number(float):
    """A number whose text is what was sent: 1.10 is not 1.1, and a long one loses no digit."""

    def __new__(cls, text: str) -> "Number":
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str

    def __str__(self) -> str:
        return self.text


class LenientNegotiation(DefaultContentNegotiation):
    """Who accepts nothing that we have gets JSON. Released apps send all sorts of Accept headers; none is a 406."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        try:
            return super().select_renderer(request, renderers, format_suffix)
        except NotAcceptable:
            return renderers[0], renderers[0].media_type
