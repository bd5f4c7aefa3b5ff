"""One project's flood does not keep another project's Bots from running."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import httpx
import pytest

from bots.models import Delivery
from bots.turns import Turns
from fhirstore.bootstrap import bootstrap
from tests.bots.conftest import Project, wait_until
from tests.conftest import Server

PATIENT = """
exports.handler = async (medplum, event) => {
  await medplum.createResource({resourceType: 'Basic', code: {text: 'flood'}});
  for (;;) {
    const found = await medplum.searchResources('Basic', {_count: 100});
    if (found.some((each) => each.code.text === 'enough')) return 'released';
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
};"""


@pytest.fixture
def neighbour(server: Server, project: Project) -> Iterator[Project]:
    """Another project on the same server."""
    client_id, secret = str(uuid.uuid4()), uuid.uuid4().hex
    made = bootstrap(
        email=f"{client_id}@example.com",
        password=uuid.uuid4().hex,
        project_name="Neighbour",
        client_id=client_id,
        client_secret=secret,
    )
    with httpx.Client(base_url=server.base_url, auth=(client_id, secret), timeout=60) as http:
        yield Project(made.project, http, project.admin)


def test_neighbour_of_a_flooding_project_is_served(project: Project, neighbour: Project) -> None:
    slow = project.bot(PATIENT, filename="a.cjs", timeout=60)
    echo = neighbour.bot("exports.handler = async (medplum, event) => event.input;", filename="a.cjs")
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(project.execute(slow))) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(project.search("Basic?_count=100")) == 5)
    refused = project.execute(slow)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "3"
    assert '"bot";r=0;t=3' in refused.headers["ratelimit"]
    assert "was not run" in refused.json()["issue"][0]["details"]["text"]
    for number in range(5):
        assert neighbour.execute(echo, {"n": number}).json() == {"n": number}
    assert answers == []  # the flood has not ended meanwhile
    project.post("/fhir/R4/Basic", {"resourceType": "Basic", "code": {"text": "enough"}})
    for thread in threads:
        thread.join()
    assert [answer.text for answer in answers] == ["released"] * 5


def test_asynchronous_flood_leaves_room_for_callers(project: Project, neighbour: Project) -> None:
    for each in project.search("Basic?_count=100"):
        project.http.delete(f"/fhir/R4/Basic/{each['id']}").raise_for_status()
    slow = project.bot(PATIENT, filename="a.cjs", timeout=60)
    jobs = [project.execute(slow, Prefer="respond-async").headers["content-location"] for _ in range(20)]
    wait_until(lambda: len(project.search("Basic?_count=100")) == 4)
    quick = neighbour.bot("exports.handler = async (medplum, event) => event.input;", filename="a.cjs")
    assert neighbour.execute(quick, {"n": 1}).json() == {"n": 1}
    assert project.execute(quick_of(project), {"n": 2}).json() == {"n": 2}
    project.post("/fhir/R4/Basic", {"resourceType": "Basic", "code": {"text": "enough"}})
    wait_until(lambda: all(project.http.get(job).status_code == 200 for job in jobs))


def quick_of(project: Project) -> str:
    """A Bot that answers at once."""
    return project.bot("exports.handler = async (medplum, event) => event.input;", filename="a.cjs")


def test_threads_go_to_the_project_with_the_fewest_at_work() -> None:
    turns, order, gate = Turns(lambda: 1), [], threading.Event()
    begun = threading.Event()

    def first() -> None:
        begun.set()
        gate.wait(10)

    thread = threading.Thread(target=lambda: turns.take("a", first))
    thread.start()
    begun.wait(10)
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        turns.take(name[0], lambda name=name: order.append(name))
    assert order == []
    gate.set()
    thread.join()
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_job_that_fails_does_not_hold_up_the_next() -> None:
    turns, order, gate, begun = Turns(lambda: 1), [], threading.Event(), threading.Event()

    def broken() -> None:
        begun.set()
        gate.wait(10)
        raise ValueError

    thread = threading.Thread(target=lambda: turns.take("a", broken))
    thread.start()
    begun.wait(10)
    turns.take("b", lambda: order.append("b"))
    gate.set()
    thread.join()
    turns.take("c", lambda: order.append("c"))
    assert order == ["b", "c"]


def test_changes_of_a_flooding_project_do_not_hold_up_its_neighbours(
    project: Project, neighbour: Project
) -> None:
    """Some hundred deliveries to slow Bots wait; the neighbour's one is carried out before they are."""
    slow = "exports.handler = async () => { await new Promise(done => setTimeout(done, 400)); };"
    flooded = project.subscribe(project.bot(slow, filename="a.cjs"), "Basic?code:text=flooding")["id"]
    quick = neighbour.bot("exports.handler = async () => {};", filename="a.cjs")
    heard = neighbour.subscribe(quick, "Basic?code:text=flooding")["id"]
    basic = {"resourceType": "Basic", "code": {"text": "flooding"}}
    entries = [{"request": {"method": "POST", "url": "Basic"}, "resource": basic}] * 150
    project.post("/fhir/R4/", {"resourceType": "Bundle", "type": "transaction", "entry": entries}, 200)
    wait_until(lambda: Delivery.objects.filter(subscription_id=flooded, state="running").count() > 1)
    neighbour.post("/fhir/R4/Basic", basic)
    wait_until(lambda: Delivery.objects.filter(subscription_id=heard, state="done").exists())
    waiting = Delivery.objects.filter(subscription_id=flooded, state="waiting")
    assert waiting.count() > 50
    waiting.update(state="skipped")  # what is left would only take time
