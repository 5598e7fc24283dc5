"""Connections to PostgreSQL that don't wait for ever.

TCP notices a network that is gone (settings.py says when), but not a server, or a proxy before it, that takes a
statement and never answers: the kernel there still acknowledges what it gets.
"""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus


class Connection(psycopg.Connection[Any]):
    """Whose statements wait `patience` seconds for an answer; then it is closed, and they raise OperationalError.

    Without limit if there is none: so in commands, where a migration takes as long as it takes.
    """

    patience: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.patience if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:  # it may still answer: nobody must read that
                self.pgconn.finish()
            raise

    @contextmanager
    def waiting_at_most(self, seconds: float) -> Iterator[None]:
        self.patience = seconds
        try:
            yield
        finally:
            del self.patience  # the class has the usual one


def still_open(connection: Any) -> None:
    """Of a pool, before somebody gets it. Nothing comes unasked but its end, and then none of them is any good."""
    look = select.poll()
    look.register(connection.pgconn.socket, select.POLLIN)
    if look.poll(0):
        try:
            connection.execute("")
        except Exception:
            connection._pool.drain()
            raise
