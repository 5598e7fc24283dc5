"""docs/api/errors.md shows every error that the API's document has an example of, as it is answered."""

import re

import pytest

from tests.documents import ROOT
from yral_chat.errors import CODES, MESSAGES
from yral_chat.schema import EXAMPLES, LIMITS, REASONS

pytestmark = pytest.mark.own_database
PAGE = (ROOT / "docs/api/errors.md").read_text()


def rows(heading: str) -> list[str]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def test_the_table_is_that_of_the_examples() -> None:
    ordered = sorted(EXAMPLES.values(), key=lambda one: one.status)
    wanted = [f"| {one.status} | `{one.code}` | {one.message} | {one.summary} |" for one in ordered]
    assert rows("Every error") == wanted, "\n".join(wanted)


def test_every_code_reason_and_limit_is_explained() -> None:
    codes = {re.findall(r"`(\w+)`", row)[0] for row in rows("What to do")}
    assert codes == set(CODES) == set(MESSAGES) | set(CODES)
    for value in (*REASONS, *LIMITS):
        assert f"`{value}`" in PAGE


def test_what_nginx_says_itself_is_there_too() -> None:
    template = (ROOT / "deploy/nginx/templates/yral_chat.conf.template").read_text().replace("\\'", "'")
    said = re.findall(r"^    on(\d{3}) '\{\"error\":\"(\w+)\",\"message\":\"(.*?)\",", template, re.MULTILINE)
    assert rows("From the proxy") == [f"| {status} | `{code}` | {message} |" for status, code, message in said]
    assert {code for _, code, _ in said} <= set(CODES)
    assert "`address_second`" in PAGE
