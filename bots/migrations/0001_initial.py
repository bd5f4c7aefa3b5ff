"""Tables of the Bots. New tables only: nothing existing is locked."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Reply",
            fields=[
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                ("body", models.BinaryField()),
                ("created", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("project", models.CharField(max_length=64)),
                ("subscription_id", models.CharField(max_length=64)),
                ("change_id", models.BigIntegerField()),
                ("bot_id", models.CharField(max_length=64)),
                ("resource_type", models.CharField(max_length=64)),
                ("resource_id", models.CharField(max_length=64)),
                ("version_id", models.CharField(max_length=64)),
                ("previous_version_id", models.CharField(max_length=64, null=True)),
                ("interaction", models.CharField(max_length=8)),
                ("author", models.CharField(max_length=128)),
                ("changed", models.DateTimeField()),
                ("trace_id", models.CharField(blank=True, max_length=128)),
                ("depth", models.PositiveIntegerField(default=0)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("waiting", "Waiting"),
                            ("running", "Running"),
                            ("retrying", "Retrying"),
                            ("done", "Done"),
                            ("failed", "Failed"),
                            ("skipped", "Skipped"),
                        ],
                        default="waiting",
                        max_length=8,
                    ),
                ),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("due", models.DateTimeField()),
                ("lease", models.PositiveIntegerField(null=True)),
                ("started", models.DateTimeField(null=True)),
                ("finished", models.DateTimeField(null=True)),
                ("outcome", models.TextField(blank=True)),
                ("audit_event_id", models.CharField(max_length=64, null=True)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("state__in", ["waiting", "retrying"])),
                        fields=["change_id", "id"],
                        name="bots_delivery_claimable",
                    ),
                    models.Index(
                        condition=models.Q(("state__in", ["waiting", "running", "retrying"])),
                        fields=["subscription_id", "resource_type", "resource_id", "change_id"],
                        name="bots_delivery_order",
                    ),
                    models.Index(
                        condition=models.Q(("state", "running")), fields=["lease"], name="bots_delivery_lease"
                    ),
                    models.Index(fields=["project", "subscription_id", "-id"], name="bots_delivery_of"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("subscription_id", "change_id"), name="bots_delivery_once"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Deployment",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("project", models.CharField(max_length=64)),
                ("bot_id", models.CharField(max_length=64)),
                ("number", models.PositiveIntegerField()),
                ("source", models.TextField()),
                ("source_filename", models.CharField(max_length=255)),
                ("code", models.TextField()),
                ("filename", models.CharField(max_length=255)),
                ("language", models.CharField(max_length=16)),
                ("module", models.CharField(max_length=16)),
                ("binary_id", models.CharField(max_length=64)),
                ("source_version_id", models.CharField(max_length=64, null=True)),
                ("note", models.TextField(blank=True)),
                ("via", models.CharField(max_length=16)),
                ("author", models.CharField(max_length=128)),
                ("author_display", models.CharField(blank=True, max_length=255)),
                ("created", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("project", "bot_id", "number"), name="bots_deployment_number"
                    )
                ],
            },
        ),
        # A reply lives for milliseconds and its asker gives up with the server: no write-ahead log for it.
        migrations.RunSQL("ALTER TABLE bots_reply SET UNLOGGED", migrations.RunSQL.noop),
    ]
