"""People signing in by API: passwords, projects, sessions, and what slows guessing down."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from django.core import mail
from django.http import HttpResponse
from pytest_django import Settings

from fhirstore import models
from fhirstore.auth import throttle
from fhirstore.auth.passwords import password_link, password_set, post_office
from tests.rest.conftest import FORM, Caller, new_caller, text_of

PASSWORD = "correct horse battery"


@pytest.fixture
def person(home: Caller) -> str:
    """The email address of a member of `home` with the password above."""
    email = f"{uuid.uuid4()}@example.com"
    invite(home, email, password=PASSWORD)
    return email


def invite(caller: Caller, email: str | None, **more: Any) -> HttpResponse:
    body = {"resourceType": "Practitioner", "firstName": "Alice", "lastName": "Jones", "email": email, **more}
    return caller.send("POST", f"/admin/projects/{caller.project}/invite", body)


def post(caller: Caller, path: str, body: Any, authorization: str = "") -> HttpResponse:
    return caller.send("POST", path, body, content_type="application/json", authorization=authorization)


def login(caller: Caller, email: str, password: str = PASSWORD, **more: Any) -> HttpResponse:
    return post(caller, "/auth/login", {"email": email, "password": password, **more})


def redeem(caller: Caller, code: str, **more: str) -> HttpResponse:
    fields = {"grant_type": "authorization_code", "code": code, **more}
    return caller.send("POST", "/oauth2/token", urlencode(fields), content_type=FORM, authorization="")


def choose_password(caller: Caller, email: str, password: str) -> None:
    """Choose a password with the link of a mail."""
    _, id_, secret = urlsplit(password_link(models.User.objects.get(email=email))).path.strip("/").split("/")
    assert (
        post(caller, "/auth/setpassword", {"id": id_, "secret": secret, "password": password}).status_code
        == 200
    )


def signed_in(caller: Caller, email: str, password: str = PASSWORD) -> str:
    """The ``Authorization`` header of a person."""
    return "Bearer " + redeem(caller, login(caller, email, password).json()["code"]).json()["access_token"]


def test_a_person_signs_in_with_a_code(home: Caller, person: str) -> None:
    answer = login(home, person.upper())
    assert answer.status_code == 200
    assert set(answer.json()) == {"login", "code"}
    tokens = redeem(home, answer.json()["code"], client_id="").json()
    me = home.send("GET", "/auth/me", authorization=f"Bearer {tokens['access_token']}").json()
    assert me["user"]["email"] == person
    assert me["profile"]["resourceType"] == "Practitioner"
    assert me["project"]["id"] == home.project
    assert "refresh_token" not in tokens
    assert redeem(home, answer.json()["code"]).json()["error"] == "invalid_grant"


def test_pkce_and_remember(home: Caller, person: str) -> None:
    verifier = "v" * 50
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    given = {"codeChallenge": challenge, "codeChallengeMethod": "S256", "remember": True}
    code = login(home, person, **given).json()["code"]
    assert "code_verifier" in redeem(home, code).json()["error_description"]
    code = login(home, person, **given).json()["code"]
    tokens = redeem(home, code, code_verifier=verifier).json()
    fields = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    again = home.send("POST", "/oauth2/token", urlencode(fields), content_type=FORM, authorization="")
    assert again.json()["refresh_token"] != tokens["refresh_token"]


def test_with_several_projects_one_is_chosen(home: Caller, person: str) -> None:
    other = new_caller()
    joined = invite(other, person).json()["id"]
    choose_password(home, person, PASSWORD)
    answer = login(home, person).json()
    assert "code" not in answer
    assert {each["project"]["reference"] for each in answer["memberships"]} == {
        f"Project/{home.project}",
        f"Project/{other.project}",
    }
    chosen = post(home, "/auth/profile", {"login": answer["login"], "profile": joined}).json()
    assert redeem(home, chosen["code"]).json()["project"]["reference"] == f"Project/{other.project}"
    assert "code" in login(home, person, projectId=other.project).json()
    foreign = models.Membership.objects.exclude(project__in=[home.project, other.project]).first()
    stranger = str(foreign.id) if foreign else str(uuid.uuid4())
    refused = post(home, "/auth/profile", {"login": answer["login"], "profile": stranger})
    assert (refused.status_code, text_of(refused)) == (400, "Profile not found")


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("login", {"email": "x", "password": "y"}, "Enter a valid email address."),
        ("login", {"email": "nobody@example.com", "password": "y"}, "Email or password is invalid"),
        ("login", {"email": "nobody@example.com"}, "This field is required."),
        ("profile", {"login": "made up", "profile": "x"}, "Login is invalid or too old"),
        ("profile", [], "Login is invalid or too old"),
        (
            "setpassword",
            {"id": "x", "secret": "y", "password": "z"},
            "The link is used up or too old. Ask for a new one",
        ),
        ("resetpassword", {"email": ""}, "This field may not be blank."),
    ],
)
def test_what_is_wrong_is_said(home: Caller, path: str, body: Any, text: str) -> None:
    answer = post(home, f"/auth/{path}", body)
    assert (answer.status_code, text_of(answer)) == (400, text)


def test_a_login_for_a_client_stays_in_its_project(home: Caller, person: str) -> None:
    assert "code" in login(home, person, clientId=home.client_id).json()
    assert text_of(login(home, person, clientId=str(uuid.uuid4()))) == "Invalid client"
    assert (
        text_of(login(home, person, clientId=new_caller().client_id)) == "User is not a member of the project"
    )


def test_guessing_is_slowed_and_the_right_password_waits_as_well(home: Caller, person: str) -> None:
    for _ in range(throttle.PAIR):
        assert login(home, person, "wrong").status_code == 400
    answer = login(home, person)
    assert answer.status_code == 429
    assert 0 < int(answer["retry-after"]) <= throttle.WINDOW
    assert answer.json()["id"] == "too-many-requests"
    elsewhere = home.http.post(
        "/auth/login",
        {"email": person, "password": PASSWORD},
        content_type="application/json",
        REMOTE_ADDR="10.1.2.3",
    )
    assert elsewhere.status_code == 200, "somebody else's guesses lock nobody out"


def test_client_secrets_are_not_guessed_either(home: Caller) -> None:
    fields = {"grant_type": "client_credentials", "client_id": home.client_id, "client_secret": "x"}
    made = new_caller()
    fields["client_id"] = made.client_id
    for _ in range(throttle.PAIR):
        answer = home.send("POST", "/oauth2/token", urlencode(fields), content_type=FORM, authorization="")
        assert (answer.status_code, answer.json()["error_description"]) == (400, "Invalid secret")
    fields["client_secret"] = made.secret
    answer = home.send("POST", "/oauth2/token", urlencode(fields), content_type=FORM, authorization="")
    assert (answer.status_code, answer.json()["error"]) == (429, "slow_down")
    assert answer["retry-after"]


def test_nor_by_basic(home: Caller) -> None:
    made = new_caller()
    wrong = Caller(made.project, made.client_id, "x", "", "")
    for _ in range(throttle.PAIR):
        assert wrong.send("GET", "Patient").status_code == 401
    assert made.send("GET", "Patient").status_code == 429
    assert (
        made.http.get(
            "/fhir/R4/Patient", headers={"authorization": made.basic}, REMOTE_ADDR="10.1.2.3"
        ).status_code
        == 200
    )


def test_behind_a_trusted_proxy_the_clients_own_address_counts(home: Caller, settings: Settings) -> None:
    made = new_caller()

    def status(secret: str, forwarded: str) -> int:
        caller = Caller(made.project, made.client_id, secret, "", "")
        return caller.send("GET", "Patient", x_forwarded_for=forwarded).status_code

    settings.TRUST_PROXY_HEADERS = True
    for number in range(throttle.PAIR):
        assert status("x", f"192.0.2.{number}, 198.51.100.1") == 401
    assert status(made.secret, "192.0.2.77, 198.51.100.1") == 429
    assert status(made.secret, "198.51.100.1, 203.0.113.5") == 200
    assert status(made.secret, "nonsense") == 200
    settings.TRUST_PROXY_HEADERS = False
    assert status(made.secret, "198.51.100.1") == 200


def test_a_forgotten_password_is_set_with_a_link_that_works_once(home: Caller, person: str) -> None:
    bearer = signed_in(home, person)
    assert post(home, "/auth/resetpassword", {"email": person}).json()["id"] == "ok"
    assert post(home, "/auth/resetpassword", {"email": "nobody@example.com"}).json()["id"] == "ok"
    post_office.submit(str).result()
    (message,) = mail.outbox
    assert message.to == [person]
    id_, secret = re.findall(r"/setpassword/([^/]+)/(\S+)", str(message.body))[0]
    given = {"id": id_, "secret": secret, "password": "12345678"}
    assert text_of(post(home, "/auth/setpassword", given)) == "This password is too common."
    given["password"] = "another good one"
    assert post(home, "/auth/setpassword", given).json()["id"] == "ok"
    assert post(home, "/auth/setpassword", given).status_code == 400
    assert home.send("GET", "/auth/me", authorization=bearer).status_code == 401, "old logins have ended"
    assert login(home, person).status_code == 400
    assert login(home, person, "another good one").status_code == 200


def test_a_person_changes_his_password_and_ends_his_sessions(home: Caller, person: str) -> None:
    bearer, other = signed_in(home, person), signed_in(home, person)
    sessions = home.send("GET", "/auth/me", authorization=bearer).json()["security"]["sessions"]
    assert len(sessions) == 2
    for session in sessions:
        assert post(home, "/auth/revoke", {"loginId": session["id"]}, bearer).status_code in (200, 401)
    assert home.send("GET", "/auth/me", authorization=other).status_code == 401
    bearer = signed_in(home, person)
    wrong = {"oldPassword": "x", "newPassword": "a good new one"}
    assert text_of(post(home, "/auth/changepassword", wrong, bearer)) == "Incorrect password"
    assert post(home, "/auth/changepassword", {**wrong, "oldPassword": PASSWORD}, bearer).status_code == 200
    assert login(home, person, "a good new one").status_code == 200
    assert post(home, "/auth/changepassword", wrong, home.basic).status_code == 401, "a client is no person"
    assert post(home, "/auth/revoke", {"loginId": str(uuid.uuid4())}, home.basic).status_code == 401


def test_clients_and_methods_are_described_without_login(home: Caller) -> None:
    answer = home.send("GET", f"/auth/clientinfo/{home.client_id}", authorization="")
    assert answer.json() == {
        "resourceType": "ClientApplication",
        "id": home.client_id,
        "name": "Default client",
    }
    assert home.send("GET", f"/auth/clientinfo/{home.client_id}x", authorization="").status_code == 404
    assert post(home, "/auth/method", {"email": "x@example.com"}).status_code == 200


# --- administration ---------------------------------------------------------------------------------------------------


def test_an_invitation_by_mail_lets_the_person_choose_a_password(home: Caller) -> None:
    email = f"{uuid.uuid4()}@example.com"
    assert invite(home, email, sendEmail=True).status_code == 200
    (message,) = mail.outbox
    assert message.subject == "Welcome to Home"
    path = re.findall(r"/setpassword/\S+", str(message.body))[0]
    page = home.http.get(path)
    assert "Choose a password" in page.content.decode()
    home.http.post(path, {"password": PASSWORD})
    assert login(home, email).status_code == 200
    assert home.http.get(path).status_code == 404


def test_somebody_from_elsewhere_has_an_external_id(home: Caller) -> None:
    external = f"hospital|{uuid.uuid4()}"
    made = invite(home, None, externalId=external)
    assert (made.status_code, made.json()["externalId"]) == (200, external)
    assert invite(home, None, externalId=external).status_code == 409
    again = invite(home, None, externalId=external, upsert=True, membership={"admin": True}).json()
    assert (again["id"], again["admin"]) == (made.json()["id"], True)
    assert text_of(invite(home, None)) == "Email or externalId is required"


def test_another_membership_is_made_on_demand(home: Caller, person: str) -> None:
    assert invite(home, person).status_code == 409
    assert invite(home, person, forceNewMembership=True).status_code == 200
    assert len(login(home, person).json()["memberships"]) == 2


def test_admins_set_passwords_of_their_own_people_only(home: Caller, person: str) -> None:
    given = {"email": person, "password": "set by the admin"}
    assert post(home, "/admin/projects/setpassword", given, home.basic).status_code == 200
    assert login(home, person, "set by the admin").status_code == 200
    weak = post(home, "/admin/projects/setpassword", {**given, "password": "x"}, home.basic)
    assert (weak.status_code, weak.json()["issue"][0]["expression"]) == (400, ["password"])
    other = new_caller()
    assert post(home, "/admin/projects/setpassword", given, other.basic).status_code == 404
    invite(other, person)
    assert post(home, "/admin/projects/setpassword", given, home.basic).status_code == 403


def test_admins_send_links(home: Caller, person: str) -> None:
    members = home.send("GET", "ProjectMembership?_count=1000").json()["entry"]
    user = models.User.objects.get(email=person)
    (member,) = [
        each["resource"]["id"]
        for each in members
        if each["resource"]["user"]["reference"] == f"User/{user.id}"
    ]
    path = f"/admin/projects/{home.project}/members"
    assert post(home, f"{path}/{member}/resetpassword", {}, home.basic).status_code == 200
    assert mail.outbox[0].to == [person]
    (client,) = [
        each["resource"]["id"]
        for each in members
        if each["resource"]["profile"]["reference"] == f"ClientApplication/{home.client_id}"
    ]
    assert post(home, f"{path}/{client}/resetpassword", {}, home.basic).status_code == 404


@pytest.mark.parametrize(
    ("name", "element", "entries"),
    [
        ("settings", "setting", [{"name": "colour", "valueString": "blue"}]),
        ("sites", "site", [{"name": "main", "domain": ["example.com"]}]),
    ],
)
def test_lists_of_the_project_are_replaced(
    home: Caller, name: str, element: str, entries: list[dict[str, Any]]
) -> None:
    path = f"/admin/projects/{home.project}/{name}"
    assert post(home, path, entries, home.basic).json()[element] == entries
    described = home.send("GET", f"/admin/projects/{home.project}").json()["project"]
    assert described[element] == entries
    assert element not in post(home, path, [], home.basic).json()
    assert post(home, path, {"name": "x"}, home.basic).status_code == 400
    assert post(home, path, [{"nonsense": 1}], home.basic).status_code == 400


# --- what tells nobody anything ---------------------------------------------------------------------------------------


def test_a_mail_server_that_is_away_does_not_tell_who_has_an_account(
    home: Caller, person: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
    for email in (person, "nobody@example.com"):
        assert post(home, "/auth/resetpassword", {"email": email}).json()["id"] == "ok"
        page = home.http.post("/resetpassword", {"email": email})
        assert (page.status_code, b"is on its way" in page.content) == (200, True)
    post_office.submit(str).result()
    assert "A link to set a password could not be sent: ConnectionRefusedError" in caplog.text
    assert person not in caplog.text


def test_a_choice_of_projects_ends_with_the_password(home: Caller, person: str) -> None:
    other = new_caller()
    joined = invite(other, person).json()["id"]
    choose_password(home, person, PASSWORD)
    choice = {"login": login(home, person).json()["login"], "profile": joined}
    assert post(home, "/auth/profile", choice).status_code == 200
    password_set(models.User.objects.get(email=person), "another good one")
    assert text_of(post(home, "/auth/profile", choice)) == "Login is invalid or too old"


def test_one_customer_of_ipv6_is_one_address() -> None:
    assert throttle.network_of("2001:db8:1:2::5") == throttle.network_of("2001:db8:1:2:ffff::6")
    assert throttle.network_of("2001:db8:1:2::5") != throttle.network_of("2001:db8:1:3::5")
    assert throttle.network_of("::ffff:192.0.2.1") == throttle.network_of("192.0.2.1") == "192.0.2.1"
    assert throttle.network_of("") == ""


def test_a_password_that_an_admin_has_given_opens_his_project_only(home: Caller, person: str) -> None:
    """Else whoever administers a project could make accounts for people whom others will invite."""
    other = new_caller()
    invite(other, person)
    assert "code" in login(home, person).json()
    assert login(home, person, projectId=other.project).status_code == 400
    changed = {"oldPassword": PASSWORD, "newPassword": "known to others"}
    assert post(home, "/auth/changepassword", changed, signed_in(home, person)).status_code == 200
    assert login(home, person, "known to others", projectId=other.project).status_code == 400
    choose_password(home, person, "my own at last")
    assert "code" in login(home, person, "my own at last", projectId=other.project).json()


# --- people as resources ----------------------------------------------------------------------------------------------


def test_a_user_is_read_by_admins_of_his_project_and_by_himself(
    home: Caller, foreign: Caller, person: str
) -> None:
    user = models.User.objects.get(email=person)
    path = f"User/{user.id}"
    answer = home.send("GET", path)
    assert answer.status_code == 200
    seen = answer.json()
    assert seen.pop("meta")["lastUpdated"]
    assert seen == {
        "resourceType": "User",
        "id": str(user.id),
        "firstName": "Alice",
        "lastName": "Jones",
        "email": person,
    }, "and nothing of his password"
    assert user.password not in answer.content.decode()
    assert foreign.send("GET", path).status_code == 404
    assert home.send("GET", f"User/{uuid.uuid4()}").status_code == 404
    assert home.send("GET", "User/x").status_code == 404
    assert home.send("GET", f"{path}/_history/{user.id}").status_code == 404
    assert home.send("PUT", path, seen).status_code == 403
    assert home.send("DELETE", path).status_code == 403

    bearer = signed_in(home, person)
    assert home.send("GET", path, authorization=bearer).json()["email"] == person
    invite(home, other := f"{uuid.uuid4()}@example.com")
    others = f"User/{models.User.objects.get(email=other).id}"
    assert home.send("GET", others, authorization=bearer).status_code == 403
    entry = {
        "resourceType": "Bundle",
        "type": "batch",
        "entry": [{"request": {"method": "GET", "url": path}}],
    }
    assert home.send("POST", "/fhir/R4/", entry).json()["entry"][0]["resource"]["email"] == person


def test_a_user_of_two_projects_is_read_in_both_and_nothing_of_the_other(
    home: Caller, foreign: Caller, person: str
) -> None:
    path = f"User/{models.User.objects.get(email=person).id}"
    assert foreign.send("GET", path).status_code == 404
    membership = invite(foreign, person).json()["id"]
    assert foreign.send("GET", path).json()["email"] == person
    assert home.project not in foreign.send("GET", path, x_medplum="extended").content.decode()
    assert (
        foreign.send("DELETE", f"/admin/projects/{foreign.project}/members/{membership}").status_code == 200
    )
    assert foreign.send("GET", path).status_code == 404
