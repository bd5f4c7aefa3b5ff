"""Claiming a delivery, as a function of the database: it can tell the planner how. Locks the deliveries for milliseconds.

What is waiting comes and goes within seconds, so statistics about it are always wrong, and the planner would read and sort all
that waits for each claim (60 ms with 500 waiting, measured). Walking the index in its order takes 0.1 ms, however many wait.
"""

from django.db import migrations

FORWARD = """
CREATE FUNCTION bots_claim_delivery(claimer integer) RETURNS SETOF bots_delivery LANGUAGE plpgsql
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off AS $$
BEGIN
    -- the oldest that is due, unless an earlier one of the same Subscription and resource is still open
    RETURN QUERY UPDATE bots_delivery
    SET state = 'running', lease = claimer, attempts = attempts + 1, started = clock_timestamp()
    WHERE id = (
        SELECT next.id FROM bots_delivery AS next
        WHERE next.state IN ('waiting', 'retrying') AND next.due <= clock_timestamp() AND (
            SELECT true FROM bots_delivery AS earlier
            WHERE earlier.state IN ('waiting', 'running', 'retrying')
              AND earlier.subscription_id = next.subscription_id AND earlier.resource_type = next.resource_type
              AND earlier.resource_id = next.resource_id AND earlier.change_id < next.change_id LIMIT 1) IS NULL
        ORDER BY next.change_id, next.id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING *;
END $$
"""


class Migration(migrations.Migration):
    dependencies = [("bots", "0001_initial")]

    operations = [
        migrations.RunSQL(FORWARD, "DROP FUNCTION bots_claim_delivery"),
        # Each delivery is written three times; the other indexes serve what these two did.
        migrations.RemoveIndex(model_name="delivery", name="bots_delivery_lease"),
        migrations.RemoveIndex(model_name="delivery", name="bots_delivery_of"),
    ]
