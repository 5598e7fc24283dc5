"""The views for people who ask the database questions: what they show, and when they are made.

One definition each. Only what `Dialect` names differs between SQLite and PostgreSQL: columns and their kinds are the
same. A day is a UTC day. What was deleted isn't there. docs/operations/analytics.md says what each column means.

SQLite rebuilds a table to change it, and can't under a view that reads it; PostgreSQL refuses to change the type of a
column that a view reads, and Django drops such a view with a column. So the views are no part of any migration's
statements: `migrate` drops them before it changes anything, and makes them anew, as this file has them, once the
database is at the code's last migration. 0004_analytics_views says from where on: going back behind it leaves none.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.migrations.loader import MigrationLoader

BEGAN_WITH = ("conversations", "0004_analytics_views")
RECENT_DAYS = 30  # with today


@dataclass(frozen=True, slots=True)
class Dialect:
    uuid: str
    day: str
    seconds: str  # whole, between two times
    pictures: str
    integer: str
    real: str
    recent: str  # the first moment of v_recent_activity
    now: str


SQLITE = Dialect(
    uuid="substr({0},1,8)||'-'||substr({0},9,4)||'-'||substr({0},13,4)||'-'||substr({0},17,4)||'-'||substr({0},21)",
    day="substr({0}, 1, 10)",
    seconds="CAST(round((julianday({1}) - julianday({0})) * 86400) AS INTEGER)",
    pictures="json_array_length({0})",
    integer="CAST({0} AS INTEGER)",
    real="CAST({0} AS REAL)",
    recent=f"date('now', '-{RECENT_DAYS - 1} days')",
    now="strftime('%Y-%m-%d %H:%M:%f', 'now')",
)
POSTGRESQL = Dialect(
    uuid="{0}::text",
    day="({0} AT TIME ZONE 'UTC')::date",
    seconds="CAST(round(extract(epoch FROM {1} - {0})) AS bigint)",
    pictures="jsonb_array_length({0})",
    integer="CAST({0} AS bigint)",
    real="CAST({0} AS double precision)",
    recent=f"((now() AT TIME ZONE 'UTC')::date - {RECENT_DAYS - 1})::timestamp AT TIME ZONE 'UTC'",
    now="now()",
)


@dataclass(frozen=True, slots=True)
class View:
    columns: dict[str, str]  # name → text, integer, real, boolean, date or timestamp
    sql: str  # with <<uuid column>> and its like for what a dialect has to say

    def select(self, dialect: Dialect) -> str:
        sql = self.sql
        while "<<" in sql:  # from the inside to the outside
            before, _, rest = sql.rpartition("<<")
            inner, _, after = rest.partition(">>")
            name, _, values = inner.partition(" ")
            sql = before + getattr(dialect, name).format(*values.split(" | ")) + after
        return sql


# What each conversation had on each day, and in all, of one reading of the messages
PER_DAY = """
    per_day AS MATERIALIZED (
        SELECT conversation_id, <<day created_at>> AS day, count(*) AS messages,
            count(CASE WHEN role = 'user' THEN 1 END) AS user_messages,
            min(created_at) AS first_at, max(created_at) AS last_at,
            max(CASE WHEN role = 'user' THEN created_at END) AS seen_at
        FROM messages {which} GROUP BY conversation_id, <<day created_at>>
    )"""
ALL_DAYS = PER_DAY.format(which="")
PER_TALK = """
    per_talk AS MATERIALIZED (
        SELECT conversation_id, sum(messages) AS messages, sum(user_messages) AS user_messages,
            min(first_at) AS first_at, max(last_at) AS last_at, max(seen_at) AS seen_at, count(*) AS days
        FROM per_day GROUP BY conversation_id
    )"""

VIEWS = {
    "v_user_conversation_summary": View(
        {
            "user_id": "text",
            "bot_id": "text",
            "bot_name": "text",
            "conversation_id": "text",
            "first_message_at": "timestamp",
            "last_message_at": "timestamp",
            "last_seen_at": "timestamp",
            "time_spent_seconds": "integer",
            "time_spent_minutes": "real",
            "time_spent_hours": "real",
            "total_messages": "integer",
            "user_messages": "integer",
            "assistant_messages": "integer",
            "active_days": "integer",
        },
        """
        SELECT user_id, bot_id, bot_name, <<uuid id>> AS conversation_id, first_message_at, last_message_at,
            last_seen_at, <<integer seconds>> AS time_spent_seconds,
            <<real round(seconds / 60.0, 2)>> AS time_spent_minutes,
            <<real round(seconds / 3600.0, 2)>> AS time_spent_hours,
            <<integer messages>> AS total_messages, <<integer user_messages>> AS user_messages,
            <<integer messages - user_messages>> AS assistant_messages, <<integer days>> AS active_days
        FROM (
            SELECT c.user_id, c.id, c.influencer_id AS bot_id, i.display_name AS bot_name,
                min(m.created_at) AS first_message_at, max(m.created_at) AS last_message_at,
                max(CASE WHEN m.role = 'user' THEN m.created_at END) AS last_seen_at,
                coalesce(<<seconds min(m.created_at) | max(m.created_at)>>, 0) AS seconds,
                count(m.id) AS messages, count(CASE WHEN m.role = 'user' THEN 1 END) AS user_messages,
                count(DISTINCT <<day m.created_at>>) AS days
            FROM conversations c
            JOIN ai_influencers i ON i.id = c.influencer_id
            LEFT JOIN messages m ON m.conversation_id = c.id
            GROUP BY c.id, c.user_id, c.influencer_id, i.display_name
        ) AS summed
        """,
    ),
    "v_conversation_threads": View(
        {
            "conversation_id": "text",
            "user_id": "text",
            "bot_id": "text",
            "bot_name": "text",
            "sequence": "integer",
            "message_id": "text",
            "role": "text",
            "message_type": "text",
            "content": "text",
            "characters": "integer",
            "pictures": "integer",
            "audio_seconds": "integer",
            "token_count": "integer",
            "blocked": "boolean",
            "stopped": "boolean",
            "created_at": "timestamp",
        },
        """
        SELECT <<uuid c.id>> AS conversation_id, c.user_id, c.influencer_id AS bot_id, i.display_name AS bot_name,
            <<integer m.sequence>> AS sequence, <<uuid m.id>> AS message_id, m.role, m.message_type, m.content,
            <<integer length(m.content)>> AS characters, <<integer <<pictures m.media_urls>>>> AS pictures,
            <<integer m.audio_duration_seconds>> AS audio_seconds, <<integer m.token_count>> AS token_count,
            m.blocked, m.stopped, m.created_at
        FROM conversations c
        JOIN ai_influencers i ON i.id = c.influencer_id
        JOIN messages m ON m.conversation_id = c.id
        """,
    ),
    "v_bot_performance": View(
        {
            "bot_id": "text",
            "bot_name": "text",
            "status": "text",
            "category": "text",
            "conversations": "integer",
            "users": "integer",
            "total_messages": "integer",
            "user_messages": "integer",
            "assistant_messages": "integer",
            "messages_per_conversation": "real",
            "answered": "integer",
            "failed": "integer",
            "blocked": "integer",
            "stopped": "integer",
            "total_tokens": "integer",
            "cost_usd": "real",
            "seconds_to_reply": "real",
            "first_message_at": "timestamp",
            "last_message_at": "timestamp",
        },
        f"""
        WITH {ALL_DAYS}, {PER_TALK},
        spoken AS (
            SELECT c.influencer_id, count(*) AS conversations, count(CASE WHEN t.user_messages > 0 THEN 1 END) AS users,
                coalesce(sum(t.messages), 0) AS messages, coalesce(sum(t.user_messages), 0) AS user_messages,
                min(t.first_at) AS first_at, max(t.last_at) AS last_at
            FROM conversations c LEFT JOIN per_talk t ON t.conversation_id = c.id GROUP BY c.influencer_id
        ),
        taken AS (
            SELECT c.influencer_id, count(CASE WHEN t.state = 'done' THEN 1 END) AS answered,
                count(CASE WHEN t.state = 'failed' THEN 1 END) AS failed,
                count(CASE WHEN t.state = 'blocked' THEN 1 END) AS blocked,
                count(CASE WHEN t.state = 'stopped' THEN 1 END) AS stopped,
                sum(t.total_tokens) AS tokens, sum(t.cost_usd) AS cost,
                avg(CASE WHEN t.state = 'done' THEN t.ms_to_end END) AS ms
            FROM turns t JOIN conversations c ON c.id = t.conversation_id GROUP BY c.influencer_id
        )
        SELECT i.id AS bot_id, i.display_name AS bot_name,
            CASE WHEN i.is_active = 'active' AND i.goes_live_at > <<now>> THEN 'coming_soon' ELSE i.is_active END
                AS status, i.category,
            <<integer coalesce(s.conversations, 0)>> AS conversations, <<integer coalesce(s.users, 0)>> AS users,
            <<integer coalesce(s.messages, 0)>> AS total_messages,
            <<integer coalesce(s.user_messages, 0)>> AS user_messages,
            <<integer coalesce(s.messages - s.user_messages, 0)>> AS assistant_messages,
            <<real coalesce(round(1.0 * s.messages / s.conversations, 2), 0)>> AS messages_per_conversation,
            <<integer coalesce(t.answered, 0)>> AS answered, <<integer coalesce(t.failed, 0)>> AS failed,
            <<integer coalesce(t.blocked, 0)>> AS blocked, <<integer coalesce(t.stopped, 0)>> AS stopped,
            <<integer coalesce(t.tokens, 0)>> AS total_tokens, <<real coalesce(round(t.cost, 6), 0)>> AS cost_usd,
            <<real round(t.ms / 1000.0, 3)>> AS seconds_to_reply, s.first_at AS first_message_at,
            s.last_at AS last_message_at
        FROM ai_influencers i
        LEFT JOIN spoken s ON s.influencer_id = i.id
        LEFT JOIN taken t ON t.influencer_id = i.id
        """,  # noqa: S608  nothing here is anybody's input
    ),
    "v_user_engagement": View(
        {
            "user_id": "text",
            "conversations": "integer",
            "total_messages": "integer",
            "user_messages": "integer",
            "assistant_messages": "integer",
            "first_message_at": "timestamp",
            "last_message_at": "timestamp",
            "last_seen_at": "timestamp",
            "active_days": "integer",
            "time_spent_seconds": "integer",
            "time_spent_minutes": "real",
            "time_spent_hours": "real",
        },
        f"""
        WITH {ALL_DAYS}, {PER_TALK},
        spoken AS (
            SELECT c.user_id, count(*) AS conversations, coalesce(sum(t.messages), 0) AS messages,
                coalesce(sum(t.user_messages), 0) AS user_messages, min(t.first_at) AS first_at,
                max(t.last_at) AS last_at, max(t.seen_at) AS seen_at,
                coalesce(sum(<<seconds t.first_at | t.last_at>>), 0) AS seconds
            FROM conversations c LEFT JOIN per_talk t ON t.conversation_id = c.id GROUP BY c.user_id
        ),
        present AS (
            SELECT c.user_id, count(DISTINCT d.day) AS days
            FROM per_day d JOIN conversations c ON c.id = d.conversation_id GROUP BY c.user_id
        )
        SELECT s.user_id, <<integer s.conversations>> AS conversations, <<integer s.messages>> AS total_messages,
            <<integer s.user_messages>> AS user_messages,
            <<integer s.messages - s.user_messages>> AS assistant_messages, s.first_at AS first_message_at,
            s.last_at AS last_message_at, s.seen_at AS last_seen_at, <<integer coalesce(p.days, 0)>> AS active_days,
            <<integer s.seconds>> AS time_spent_seconds, <<real round(s.seconds / 60.0, 2)>> AS time_spent_minutes,
            <<real round(s.seconds / 3600.0, 2)>> AS time_spent_hours
        FROM spoken s LEFT JOIN present p ON p.user_id = s.user_id
        """,  # noqa: S608
    ),
    "v_daily_activity": View(
        {
            "activity_date": "date",
            "active_users": "integer",
            "new_users": "integer",
            "active_conversations": "integer",
            "new_conversations": "integer",
            "total_messages": "integer",
            "user_messages": "integer",
            "assistant_messages": "integer",
            "failed": "integer",
            "blocked": "integer",
            "total_tokens": "integer",
            "cost_usd": "real",
        },
        f"""
        WITH {ALL_DAYS},
        parts AS (
            SELECT d.day, count(DISTINCT CASE WHEN d.user_messages > 0 THEN c.user_id END) AS active_users,
                0 AS new_users, count(*) AS active_conversations, 0 AS new_conversations, sum(d.messages) AS messages,
                sum(d.user_messages) AS user_messages, 0 AS failed, 0 AS blocked, 0 AS tokens, 0 AS cost
            FROM per_day d JOIN conversations c ON c.id = d.conversation_id GROUP BY d.day
            UNION ALL
            SELECT <<day created_at>>, 0, 0, 0, count(*), 0, 0, 0, 0, 0, 0
            FROM conversations GROUP BY <<day created_at>>
            UNION ALL
            SELECT <<day came_at>>, 0, count(*), 0, 0, 0, 0, 0, 0, 0, 0
            FROM (SELECT min(created_at) AS came_at FROM conversations GROUP BY user_id) AS first_ones
            GROUP BY <<day came_at>>
            UNION ALL
            SELECT <<day created_at>>, 0, 0, 0, 0, 0, 0, count(CASE WHEN state = 'failed' THEN 1 END),
                count(CASE WHEN state = 'blocked' THEN 1 END), sum(total_tokens), coalesce(sum(cost_usd), 0)
            FROM turns GROUP BY <<day created_at>>
        )
        SELECT day AS activity_date, <<integer sum(active_users)>> AS active_users,
            <<integer sum(new_users)>> AS new_users, <<integer sum(active_conversations)>> AS active_conversations,
            <<integer sum(new_conversations)>> AS new_conversations, <<integer sum(messages)>> AS total_messages,
            <<integer sum(user_messages)>> AS user_messages,
            <<integer sum(messages - user_messages)>> AS assistant_messages, <<integer sum(failed)>> AS failed,
            <<integer sum(blocked)>> AS blocked, <<integer sum(tokens)>> AS total_tokens,
            <<real round(sum(cost), 6)>> AS cost_usd
        FROM parts GROUP BY day
        """,  # noqa: S608
    ),
    "v_recent_activity": View(
        {
            "activity_date": "date",
            "bot_id": "text",
            "bot_name": "text",
            "active_users": "integer",
            "active_conversations": "integer",
            "total_messages": "integer",
            "user_messages": "integer",
            "assistant_messages": "integer",
            "last_message_at": "timestamp",
        },
        f"""
        WITH {PER_DAY.format(which="WHERE created_at >= <<recent>>")}
        SELECT d.day AS activity_date, i.id AS bot_id, i.display_name AS bot_name,
            <<integer count(CASE WHEN d.user_messages > 0 THEN 1 END)>> AS active_users,
            <<integer count(*)>> AS active_conversations, <<integer sum(d.messages)>> AS total_messages,
            <<integer sum(d.user_messages)>> AS user_messages,
            <<integer sum(d.messages - d.user_messages)>> AS assistant_messages, max(d.last_at) AS last_message_at
        FROM per_day d
        JOIN conversations c ON c.id = d.conversation_id
        JOIN ai_influencers i ON i.id = c.influencer_id
        GROUP BY d.day, i.id, i.display_name
        """,  # noqa: S608
    ),
}


# When they are there


def drop_views(using: str, plan: list[Any], **_: Any) -> None:
    """Before `migrate` changes anything."""
    if plan:
        with transaction.atomic(using=using), connections[using].cursor() as cursor:
            for name in VIEWS:
                cursor.execute(f"DROP VIEW IF EXISTS {name}")


def make_views(using: str, **_: Any) -> None:
    """After `migrate`, and after each emptying of a test's tables. Those that are as they should be stay."""
    connection = connections[using]
    wanted = {name: f"CREATE VIEW {name} AS {view.select(_dialect(connection))}" for name, view in VIEWS.items()}
    if _made(connection) == {name: _fingerprint(sql) for name, sql in wanted.items()} or not _is_at_the_end(connection):
        return
    with transaction.atomic(using=using), connection.cursor() as cursor:
        for name, sql in wanted.items():
            cursor.execute(f"DROP VIEW IF EXISTS {name}")
            cursor.execute(sql)
            if connection.vendor == "postgresql":
                cursor.execute(f"COMMENT ON VIEW {name} IS '{_fingerprint(sql)}'")


def views_are_made() -> bool:
    return _made(connections[DEFAULT_DB_ALIAS]).keys() == VIEWS.keys()


def _dialect(connection: Any) -> Dialect:
    return SQLITE if connection.vendor == "sqlite" else POSTGRESQL


def _fingerprint(sql: str) -> str:
    return hashlib.sha256(sql.encode()).hexdigest()


def _made(connection: Any) -> dict[str, str]:
    """The fingerprints of those that are there. PostgreSQL keeps no text of a view as it was given."""
    names = ", ".join(f"'{name}'" for name in VIEWS)
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"SELECT name, sql FROM sqlite_master WHERE type = 'view' AND name IN ({names})")  # noqa: S608
            return {name: _fingerprint(sql) for name, sql in cursor.fetchall()}
        cursor.execute(
            "SELECT relname, obj_description(oid, 'pg_class') FROM pg_class "  # noqa: S608
            f"WHERE relkind = 'v' AND pg_table_is_visible(oid) AND relname IN ({names})"
        )
        return dict(cursor.fetchall())


def _is_at_the_end(connection: Any) -> bool:
    """All migrations are applied, so that the tables are those that this file knows."""
    loader = MigrationLoader(connection)
    return BEGAN_WITH in loader.applied_migrations and set(loader.graph.leaf_nodes()) <= set(loader.applied_migrations)
