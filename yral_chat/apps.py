from django.apps import AppConfig
from django.conf import settings
from django.contrib.admin import apps as admin


class YralChatConfig(AppConfig):
    name = "yral_chat"

    def ready(self) -> None:
        from yral_chat import checks, requests  # noqa: F401  they register themselves

        if settings.SENTRY_DSN:
            from yral_chat import sentry

            sentry.start()


class DeskConfig(admin.AdminConfig):
    """Django's admin, with a site of our own."""

    default = False
    default_site = "yral_chat.desk.Desk"
