"""What ties log lines to the request that they belong to."""

import logging
from contextvars import ContextVar

correlation_id: ContextVar[str] = ContextVar("correlation_id", default="-")


class CorrelationFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.correlation_id = correlation_id.get()
        return True


class CrashFilter(logging.Filter):
    """Of what Django says of bad answers only the crashes: our own handler and the request's line tell the rest."""

    def filter(self, record: logging.LogRecord) -> bool:
        return bool(record.exc_info)
