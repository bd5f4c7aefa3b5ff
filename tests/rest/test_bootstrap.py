"""The first project and what repeating the start changes: nothing."""

from __future__ import annotations

import io
import uuid

import pytest
from django.core.management import CommandError, call_command

from fhirstore import models
from fhirstore.auth.identities import memberships_of_user, project_of_client
from fhirstore.bootstrap import bootstrap, is_bootstrapped
from tests.rest.conftest import new_caller


def test_bootstrap_makes_a_project_that_can_be_used_at_once(database: None) -> None:
    caller = new_caller()
    assert is_bootstrapped()
    me = caller.send("GET", "/auth/me").json()
    assert me["project"]["features"] == ["bots", "cron", "transaction-bundles", "websocket-subscriptions"]
    assert me["membership"]["admin"] is True
    assert me["config"]["menu"][1]["title"] == "Admin"
    user = models.User.objects.get(email=caller.email)
    assert user.check_password(caller.password)
    owner = caller.repository.read("Project", caller.project).resource["owner"]
    assert owner["reference"] == f"User/{user.id}"


def test_bootstrap_again_changes_nothing_but_the_clients_secret(database: None) -> None:
    caller, secret = new_caller(), uuid.uuid4().hex
    for email, password in ((caller.email, "another"), ("somebody-else@example.com", "x")):
        again = bootstrap(
            email=email,
            password=password,
            project_name="Other",
            client_id=caller.client_id,
            client_secret=secret,
        )
        assert (again.project, again.created) == (caller.project, False)
    assert caller.repository.read("Project", caller.project).resource["name"] == "Home"
    assert models.User.objects.get(email=caller.email).check_password(caller.password)
    assert not models.User.objects.filter(email="somebody-else@example.com").exists()
    assert project_of_client(caller.client_id, secret) == caller.project
    assert project_of_client(caller.client_id, caller.secret) is None


def test_a_second_client_joins_the_project_of_the_user(database: None) -> None:
    caller, client_id = new_caller(), str(uuid.uuid4())
    made = bootstrap(
        email=caller.email, password="x", project_name="x", client_id=client_id, client_secret="secret"
    )
    assert made.project == caller.project
    assert project_of_client(client_id, "secret") == caller.project


def test_a_client_id_must_be_a_uuid_and_ones_own(database: None) -> None:
    one, two = new_caller(), new_caller()
    values = {"email": one.email, "password": "x", "project_name": "x", "client_secret": "x"}
    with pytest.raises(ValueError, match="must be a UUID"):
        bootstrap(**values, client_id="my-client")
    with pytest.raises(ValueError, match="belongs to another project"):
        bootstrap(**values, client_id=two.client_id)


def test_further_projects_are_made_by_a_command(database: None) -> None:
    email, out = f"{uuid.uuid4()}@example.com", io.StringIO()
    call_command("create_project", "Staging", admin=email, stdout=out)
    password = out.getvalue().split()[-1]
    user = models.User.objects.get(email=email)
    assert user.check_password(password)
    call_command("create_project", "Production", admin=email.upper(), stdout=out)
    found = memberships_of_user(user)
    assert [(each.project_name, each.is_admin) for each in found] == [("Production", True), ("Staging", True)]
    assert models.User.objects.get(email=email).check_password(password)
    for name, admin in ((" ", email), ("Staging", "nobody")):
        with pytest.raises(CommandError):
            call_command("create_project", name, admin=admin)
