from django.apps import AppConfig
from django.db.models.signals import post_migrate, pre_migrate


class ConversationsConfig(AppConfig):
    name = "conversations"

    def ready(self) -> None:
        from conversations.analytics import drop_views, make_views
        from conversations.sample_runs import objections
        from personas.versions import OBJECTORS

        OBJECTORS.append(objections)
        pre_migrate.connect(drop_views, sender=self)
        post_migrate.connect(make_views, sender=self)

    def serve(self) -> None:
        from conversations.switchboard import switchboard

        switchboard.start()

    def at_rest(self) -> bool:
        from conversations.live import here

        return not here.all()
