"""Files that jobs have made for their callers, and when they go."""

from django.db import migrations

FORWARD = """
CREATE TABLE job_file (
    binary_id uuid PRIMARY KEY,
    project uuid NOT NULL,
    expires timestamptz NOT NULL
);
CREATE INDEX job_file_expires ON job_file (expires);
"""


class Migration(migrations.Migration):
    dependencies = [("fhirstore", "0007_password_project")]

    operations = [migrations.RunSQL(FORWARD, "DROP TABLE job_file;")]
