"""Wheels of projects, and which of them a deployment uses."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("bots", "0008_turns"),
    ]

    operations = [
        migrations.CreateModel(
            name="Wheel",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("project", models.CharField(max_length=64)),
                ("name", models.CharField(max_length=100)),
                ("filename", models.CharField(max_length=255)),
                ("digest", models.CharField(max_length=64)),
                ("content", models.BinaryField()),
                ("is_listed", models.BooleanField()),
                ("author", models.CharField(max_length=128)),
                ("author_display", models.CharField(blank=True, max_length=255)),
                ("created", models.DateTimeField()),
            ],
        ),
        migrations.AddConstraint(
            model_name="wheel",
            constraint=models.UniqueConstraint(fields=("project", "digest"), name="bots_wheel_content"),
        ),
        migrations.AddConstraint(
            model_name="wheel",
            constraint=models.UniqueConstraint(
                condition=models.Q(("is_listed", True)), fields=("project", "name"), name="bots_wheel_name"
            ),
        ),
        migrations.AddField(model_name="deployment", name="wheels", field=models.JSONField(default=list)),
    ]
