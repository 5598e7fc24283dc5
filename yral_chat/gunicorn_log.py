from gunicorn.config import Config
from gunicorn.glogging import Logger


class ServiceLogger(Logger):  # type: ignore[misc]
    """gunicorn's own lines among those of the service, in one format."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
