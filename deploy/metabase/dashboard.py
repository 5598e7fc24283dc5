#!/usr/bin/env python3
"""Sets Metabase up, or brings it up to date: the connection to the exported file, the questions, a dashboard of them.

    METABASE_URL=http://127.0.0.1:3000 METABASE_API_KEY=… python3 deploy/metabase/dashboard.py [--reconnect]

METABASE_API_KEY, or METABASE_USER and METABASE_PASSWORD, of an administrator. METABASE_DATABASE_FILE is where Metabase
sees the file of `manage.py export_analytics` (/analytics/analytics.db). What is there under the same name is changed,
and the rest is left alone: run it as often as you like. With --reconnect only the connection is renewed, as after each
export: Metabase else goes on reading the file that was there when it connected. Needs nothing but Python 3.
"""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

NAME = "Yral AI Chat"
WIDTH = 24  # columns of Metabase's grid
PATIENCE = 60  # seconds


@dataclass(frozen=True)
class Card:
    name: str
    display: str
    sql: str
    size: tuple[int, int]  # columns and rows of the grid
    settings: dict[str, Any] = field(default_factory=dict)


def chart(name: str, display: str, by: list[str], values: list[str], sql: str, wide: int = 12) -> Card:
    return Card(name, display, sql, (wide, 6), {"graph.dimensions": by, "graph.metrics": values})


def daily(columns: str) -> str:
    """Of the last 90 days."""
    days = "WHERE activity_date >= date('now', '-90 days') ORDER BY activity_date"
    return f"SELECT activity_date, {columns} FROM bi_daily_activity {days}"  # noqa: S608


CARDS = [
    Card("Data as of (UTC)", "scalar", "SELECT exported_at FROM bi_export", (6, 3)),
    Card(
        "Users in 30 days",
        "scalar",
        "SELECT count(*) AS users FROM bi_user_engagement WHERE last_seen_at >= datetime('now', '-30 days')",
        (6, 3),
    ),
    Card(
        "Messages in 30 days",
        "scalar",
        "SELECT coalesce(sum(total_messages), 0) AS messages FROM bi_recent_activity",
        (6, 3),
    ),
    Card(
        "Cost in 30 days (USD)",
        "scalar",
        "SELECT round(coalesce(sum(cost_usd), 0), 2) AS usd FROM bi_daily_activity"
        " WHERE activity_date > date('now', '-30 days')",
        (6, 3),
    ),
    chart(
        "Messages a day",
        "line",
        ["activity_date"],
        ["user_messages", "assistant_messages"],
        daily("user_messages, assistant_messages"),
    ),
    chart(
        "Active and new users a day",
        "line",
        ["activity_date"],
        ["active_users", "new_users"],
        daily("active_users, new_users"),
    ),
    chart(
        "Failed and blocked questions a day",
        "bar",
        ["activity_date"],
        ["failed", "blocked"],
        daily("failed, blocked"),
    ),
    chart(
        "Cost a day (USD)",
        "bar",
        ["activity_date"],
        ["cost_usd"],
        daily("cost_usd"),
    ),
    chart(
        "Messages by persona, 30 days",
        "line",
        ["activity_date", "bot_name"],
        ["total_messages"],
        "SELECT activity_date, bot_name, total_messages FROM bi_recent_activity ORDER BY 1, 2",
        wide=24,
    ),
    Card(
        "Personas",
        "table",
        "SELECT bot_name, status, users, total_messages, messages_per_conversation, failed, blocked, total_tokens,"
        " cost_usd, seconds_to_reply FROM bi_bot_performance ORDER BY total_messages DESC, bot_name",
        (24, 7),
    ),
    chart(
        "Users by days on which they were here",
        "bar",
        ["active_days"],
        ["users"],
        "SELECT min(active_days, 30) AS active_days, count(*) AS users FROM bi_user_engagement GROUP BY 1 ORDER BY 1",
    ),
    chart(
        "Questions by the hour of the day (UTC), 30 days",
        "bar",
        ["hour"],
        ["questions"],
        "SELECT CAST(strftime('%H', created_at) AS INTEGER) AS hour, count(*) AS questions FROM bi_conversation_threads"
        " WHERE role = 'user' AND created_at >= datetime('now', '-30 days') GROUP BY 1 ORDER BY 1",
    ),
]


class Refused(Exception):
    """Metabase said no, or nothing; the text says to what."""


class Metabase:
    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.url, self.headers = url.rstrip("/"), headers

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        request = urllib.request.Request(f"{self.url}/api/{path}", data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310
                content = response.read()
        except urllib.error.HTTPError as exc:
            told = exc.read(500).decode(errors="replace")
            raise Refused(f"{method} /api/{path}: {exc.code} {told}") from exc
        except OSError as exc:
            raise Refused(f"{self.url} doesn't answer: {exc}") from exc
        return json.loads(content) if content else None

    def named(self, path: str, name: str) -> dict[str, Any] | None:
        """The one of this name in a list, which newer versions wrap."""
        found = self.call("GET", path)
        rows = found["data"] if isinstance(found, dict) else found
        return next((row for row in rows if row.get("name") == name and not row.get("archived")), None)


def logged_in(environ: Any) -> Metabase:
    url = environ.get("METABASE_URL", "")
    if not url.startswith(("http://", "https://")):
        raise Refused("METABASE_URL must be Metabase's address, such as http://127.0.0.1:3000.")
    if environ.get("METABASE_API_KEY"):
        return Metabase(url, {"X-Api-Key": environ["METABASE_API_KEY"]})
    if not (environ.get("METABASE_USER") and environ.get("METABASE_PASSWORD")):
        raise Refused("Set METABASE_API_KEY, or METABASE_USER and METABASE_PASSWORD.")
    who = {"username": environ["METABASE_USER"], "password": environ["METABASE_PASSWORD"]}
    return Metabase(url, {"X-Metabase-Session": Metabase(url, {}).call("POST", "session", who)["id"]})


def connect(metabase: Metabase, file: str) -> int:
    """The connection's id. An existing one gets the same file under another spelling: that ends Metabase's open
    connections, which would go on reading the file that an export has replaced."""
    known = metabase.named("database", NAME)
    if known is None:
        made = {"name": NAME, "engine": "sqlite", "details": {"db": file}}
        return int(metabase.call("POST", "database", made)["id"])
    folder, _, name = file.rpartition("/")
    spelled = f"{folder}/./{name}" if known.get("details", {}).get("db") == file else file
    body = {"name": NAME, "engine": "sqlite", "details": {"db": spelled}}
    metabase.call("PUT", f"database/{known['id']}", body)
    metabase.call("POST", f"database/{known['id']}/sync_schema")
    return int(known["id"])


def collection(metabase: Metabase) -> int:
    known = metabase.named("collection", NAME)
    return int((known or metabase.call("POST", "collection", {"name": NAME}))["id"])


def card(metabase: Metabase, made: Card, database: int, folder: int) -> int:
    known = metabase.named(f"collection/{folder}/items?models=card", made.name)
    body = {
        "name": made.name,
        "display": made.display,
        "dataset_query": {"type": "native", "database": database, "native": {"query": made.sql, "template-tags": {}}},
        "visualization_settings": made.settings,
        "collection_id": folder,
    }
    if known:
        return int(metabase.call("PUT", f"card/{known['id']}", body)["id"])
    return int(metabase.call("POST", "card", body)["id"])


def dashboard(metabase: Metabase, cards: list[int], folder: int) -> int:
    """Of exactly these cards: what somebody added by hand belongs on a dashboard of their own."""
    known = metabase.named(f"collection/{folder}/items?models=dashboard", NAME)
    found = int((known or metabase.call("POST", "dashboard", {"name": NAME, "collection_id": folder}))["id"])
    metabase.call("PUT", f"dashboard/{found}", {"dashcards": layout(cards)})
    return found


def layout(cards: list[int]) -> list[dict[str, Any]]:
    """From left to right, then the next row. Ids below zero are new to Metabase."""
    placed, col, row, tallest = [], 0, 0, 0
    for number, (one, (wide, high)) in enumerate(zip(cards, (made.size for made in CARDS), strict=True), 1):
        if col + wide > WIDTH:
            col, row, tallest = 0, row + tallest, 0
        place = {"row": row, "col": col, "size_x": wide, "size_y": high}
        placed.append({"id": -number, "card_id": one, **place, "parameter_mappings": [], "visualization_settings": {}})
        col, tallest = col + wide, max(tallest, high)
    return placed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reconnect", action="store_true", help="only make Metabase read the newest file")
    given = parser.parse_args()
    try:
        metabase = logged_in(os.environ)
        database = connect(metabase, os.environ.get("METABASE_DATABASE_FILE") or "/analytics/analytics.db")
        if given.reconnect:
            return
        folder = collection(metabase)
        cards = [card(metabase, made, database, folder) for made in CARDS]
        found = dashboard(metabase, cards, folder)
    except Refused as exc:
        sys.exit(str(exc))
    sys.stdout.write(f"{len(cards)} questions on {metabase.url}/dashboard/{found}\n")


if __name__ == "__main__":
    main()
