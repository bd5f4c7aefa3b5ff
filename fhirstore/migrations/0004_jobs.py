"""Asynchronous jobs that are open: one row each from their start to their end, beside their AsyncJob (`jobs.py`)."""

from django.db import migrations

FORWARD = """
CREATE TABLE job (
    id uuid PRIMARY KEY,                 -- of the AsyncJob
    number integer GENERATED ALWAYS AS IDENTITY UNIQUE,  -- second key of the advisory lock that says: it is being run
    project uuid NOT NULL,
    kind text NOT NULL COLLATE "C",
    parameters text NOT NULL,            -- JSON
    actor text NOT NULL,                 -- JSON: whose identity it runs as
    progress text NOT NULL DEFAULT '{}', -- JSON: what a later attempt need not do again
    attempts integer NOT NULL DEFAULT 0,
    created timestamptz NOT NULL DEFAULT clock_timestamp(),
    due timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX job_due ON job (due);
"""


class Migration(migrations.Migration):
    dependencies = [("fhirstore", "0003_failure")]

    operations = [migrations.RunSQL(FORWARD, "DROP TABLE job;")]
