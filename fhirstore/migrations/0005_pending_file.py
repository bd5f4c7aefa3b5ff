"""Files of Binaries that are written, but whose resource is not committed yet; what stays here too long is an orphan."""

from django.db import migrations

FORWARD = """
CREATE TABLE pending_file (
    name text PRIMARY KEY,
    created timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""


class Migration(migrations.Migration):
    dependencies = [("fhirstore", "0004_jobs")]

    operations = [migrations.RunSQL(FORWARD, "DROP TABLE pending_file;")]
