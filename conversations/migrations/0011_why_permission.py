from django.db import migrations

CODENAME = "explain_message"


def add_permission(apps, schema_editor):
    """Made here, so that migrations can give it to groups: Django makes its own only after all of them."""
    kind, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(
        app_label="conversations", model="message"
    )
    apps.get_model("auth", "Permission").objects.get_or_create(
        content_type=kind,
        codename=CODENAME,
        defaults={"name": "Can see why a persona said something, and replay it"},
    )


def remove_permission(apps, schema_editor):
    apps.get_model("auth", "Permission").objects.filter(
        content_type__app_label="conversations", codename=CODENAME
    ).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("conversations", "0010_why"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("auth", "0012_alter_user_first_name_max_length"),
    ]

    operations = [migrations.RunPython(add_permission, remove_permission)]
