from django.apps import AppConfig


class YralChatConfig(AppConfig):
    name = "yral_chat"

    def ready(self) -> None:
        from yral_chat import checks, requests  # noqa: F401  they register themselves
