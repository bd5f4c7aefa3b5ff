"""The archive of runs, and the function that adds to it from within another statement. Nothing existing is locked."""

from django.db import migrations, models

FORWARD = """
CREATE FUNCTION bots_store_run(id uuid, project text, bot_id text, ended timestamptz, trigger text, kind text, status integer,
    duration_ms double precision, deployment integer, attempt integer, trace_id text, details text, log text, request bytea)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO bots_run (id, project, bot_id, ended, trigger, kind, status, duration_ms, deployment, attempt, trace_id, details,
        log, request)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
$$
"""


class Migration(migrations.Migration):
    dependencies = [
        ("bots", "0006_forgiven"),
    ]

    operations = [
        migrations.CreateModel(
            name="RunRecord",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "project",
                        "bot_id",
                        "id",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("id", models.UUIDField()),
                ("project", models.CharField(max_length=64)),
                ("bot_id", models.CharField(max_length=64)),
                ("ended", models.DateTimeField()),
                ("trigger", models.CharField(max_length=12)),
                ("kind", models.CharField(max_length=16, null=True)),
                ("status", models.PositiveIntegerField()),
                ("duration_ms", models.FloatField()),
                ("deployment", models.PositiveIntegerField(null=True)),
                ("attempt", models.PositiveIntegerField()),
                ("trace_id", models.CharField(max_length=128)),
                ("details", models.TextField()),
                ("log", models.TextField(null=True)),
                ("request", models.BinaryField(null=True)),
            ],
            options={
                "db_table": "bots_run",
            },
        ),
        migrations.RunSQL(FORWARD, "DROP FUNCTION bots_store_run"),
    ]
