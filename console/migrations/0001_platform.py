"""Tables of the platform: messages of the default broker, and the last sign of life of each worker."""

from django.db import migrations

FORWARD = """
CREATE UNLOGGED TABLE console_message (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue text NOT NULL,
    body text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE UNLOGGED TABLE console_worker (
    name text PRIMARY KEY,
    seen timestamptz NOT NULL,
    problem text NOT NULL
);
"""
BACKWARD = "DROP TABLE console_message, console_worker"


class Migration(migrations.Migration):
    """Both tables are UNLOGGED: what they hold is worth nothing after a crash of the database."""

    initial = True
    dependencies: list[tuple[str, str]] = []
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
