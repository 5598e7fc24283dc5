from django.db import migrations

CODENAME = "publish_influencer"


def add_permission(apps, schema_editor):
    """Made here, so that migrations can give it to groups: Django makes its own only after all of them."""
    kind, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(
        app_label="personas", model="influencer"
    )
    apps.get_model("auth", "Permission").objects.get_or_create(
        content_type=kind,
        codename=CODENAME,
        defaults={"name": "Can publish, roll back, activate and retire personas"},
    )


def remove_permission(apps, schema_editor):
    apps.get_model("auth", "Permission").objects.filter(
        content_type__app_label="personas", codename=CODENAME
    ).delete()


class Migration(migrations.Migration):
    dependencies = [("personas", "0005_published_versions_stay")]

    operations = [migrations.RunPython(add_permission, remove_permission)]
