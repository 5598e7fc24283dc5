"""JSON as people write it who are no programmers: a list is a text a line, an object is `name: text` a line, as
differences show them. What lines can't say (a number, a line break within) is shown as JSON, and JSON is read, too."""

import json
from typing import Any

import orjson
from django import forms
from django.core.exceptions import ValidationError

from personas.differences import as_text


class StrictDecoder(json.JSONDecoder):
    """Python's own takes NaN and halves of characters, and the page that says so can't be sent."""

    def decode(self, s: str, *args: Any) -> Any:
        return orjson.loads(s)


class LinesField(forms.JSONField):
    """A list of texts."""

    def bound_data(self, data: Any, initial: Any) -> Any:
        return data

    def prepare_value(self, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        text = as_text(value)
        return text if self._says(text, value) else super().prepare_value(value)

    def to_python(self, value: Any) -> Any:
        if not isinstance(value, str) or value.lstrip().startswith(("[", "{")):
            return super().to_python(value)
        return self.read([line.strip() for line in value.split("\n") if line.strip()])

    def read(self, lines: list[str]) -> Any:
        return lines

    def _says(self, text: str, value: Any) -> bool:
        try:
            return bool(self.to_python(text) == value)
        except ValidationError:
            return False


class TraitsField(LinesField):
    """An object of texts."""

    def read(self, lines: list[str]) -> Any:
        traits: dict[str, str] = {}
        for line in lines:
            name, _, said = (part.strip() for part in line.partition(":"))
            if not name or not said:
                raise ValidationError("Write a name, a colon and what it is like, as in “tone: warm”, one to a line.")
            if name in traits:
                raise ValidationError(f"“{name}” stands here twice.")
            traits[name] = said
        return traits
