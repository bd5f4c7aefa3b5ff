"""Send many requests nobody would send: ``python -m tests.bench.fuzz [requests] [seed]``.

Half of them come from an admin, half from somebody whom an AccessPolicy limits. Works in a test database of its own beside that of DATABASE_URL. Prints the failures (5xx, bytes that must not be seen, more than
ten seconds), each kind once, and how many answers there were of each status.
"""

from __future__ import annotations

import collections
import os
import sys
import time

SLOW = 10.0
"""Seconds after which an answer counts as a hang."""


def main() -> None:
    """Send the requests; exits with 1 if one of them failed."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")
    import django

    django.setup()
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    from tests.bench.store import _fresh_database
    from tests.rest.conftest import new_caller
    from tests.rest.fuzzing import fire, limit, make_world, shots

    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    failures: dict[str, object] = {}
    counts: collections.Counter[int] = collections.Counter()
    slowest = (0.0, "")

    with _fresh_database():
        worlds = [make_world(new_caller(), new_caller()) for _ in range(2)]
        limit(worlds[1])

        @seed(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        @settings(
            max_examples=requests // 4,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(data=st.data())
        def run(data: st.DataObject) -> None:
            nonlocal slowest
            for world in worlds * 2:
                shot = data.draw(shots(world))
                start = time.perf_counter()
                status, wrong = fire(world, shot)
                taken = time.perf_counter() - start
                slowest = max(slowest, (taken, str(shot)))
                if taken > SLOW:
                    wrong = f"took {taken:.0f} s"
                counts[status] += 1
                if wrong and wrong[:60] not in failures:
                    failures[wrong[:60]] = (wrong, shot)
                    print(f"--- {wrong}\n{shot}", flush=True)

        run()
    print(
        f"{sum(counts.values())} requests, {dict(sorted(counts.items()))}, slowest {slowest[0]:.2f} s, {len(failures)} kinds of failure"
    )
    print(f"The slowest: {slowest[1]}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
