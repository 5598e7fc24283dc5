"""An HTML page as a browser reads it: its links, what its form would send, and what of a text stayed text."""

from html.parser import HTMLParser
from typing import Any

BUTTONS = ("submit", "button", "reset", "image", "file")


class Page(HTMLParser):
    def __init__(self, response: Any) -> None:
        super().__init__(convert_charrefs=True)
        self.html: str = response.content.decode()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.forms: dict[str, dict[str, list[str]]] = {}
        self.links: list[tuple[str, str]] = []
        self.words: list[str] = []
        self._form: dict[str, list[str]] = {}
        self._textarea: tuple[str, list[str]] | None = None
        self._select: tuple[str, list[tuple[str, bool]]] | None = None
        self._link: tuple[str, list[str]] | None = None
        self.feed(self.html)
        self.close()

    @property
    def text(self) -> str:
        """What a person could read, scripts and styles included."""
        return " ".join(" ".join(self.words).split())

    def link(self, text: str) -> str:
        """Where the first link of this text leads."""
        return next(href for words, href in self.links if words == text)

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name))]

    def form(self, form_id: str) -> dict[str, list[str]]:
        """What a browser sends when nothing was touched; newlines go out as CR LF."""
        return {name: list(values) for name, values in self.forms[form_id].items()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        name = values.get("name", "")
        if tag == "form":
            self._form = self.forms.setdefault(values.get("id", ""), {})
        elif tag == "a":
            self._link = (values.get("href", ""), [])
        elif tag == "input" and name and values.get("type") not in BUTTONS and "disabled" not in values:
            if values.get("type") not in ("checkbox", "radio") or "checked" in values:
                self._fill(name, values.get("value", "on" if values.get("type") == "checkbox" else ""))
        elif tag == "textarea":
            self._textarea = (name, [])
        elif tag == "select":
            self._select = (name, [])
        elif tag == "option" and self._select:
            self._select[1].append((values.get("value", ""), "selected" in values))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = {}
        elif tag == "a" and self._link:
            self.links.append((" ".join("".join(self._link[1]).split()), self._link[0]))
            self._link = None
        elif tag == "textarea" and self._textarea:
            name, typed = self._textarea
            text = "".join(typed).removeprefix("\n").replace("\r\n", "\n")  # HTML drops the first line break
            self._fill(name, text.replace("\n", "\r\n"))
            self._textarea = None
        elif tag == "select" and self._select:
            name, options = self._select
            chosen = [value for value, selected in options if selected] or [value for value, _ in options[:1]]
            self._form.setdefault(name, []).extend(chosen)
            self._select = None

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._textarea:
            self._textarea[1].append(data)
        if self._link:
            self._link[1].append(data)

    def _fill(self, name: str, value: str) -> None:
        self._form.setdefault(name, []).append(value)
