from django.apps import AppConfig


class YralChatConfig(AppConfig):
    name = "yral_chat"

    def ready(self) -> None:
        from yral_chat import checks  # noqa: F401  registers itself
