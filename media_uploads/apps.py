from django.apps import AppConfig


class MediaUploadsConfig(AppConfig):
    name = "media_uploads"
    verbose_name = "Media"

    def warm_up(self) -> None:
        from media_uploads import storage

        storage.warm_up()
