"""The client for handlers that are plain functions: :mod:`fhirbots.client` without ``await``.

Made from ``client.py`` by ``python -m fhirbots.make_sync``; change that one.
"""

from __future__ import annotations

import json
import os
import re
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit

from fhirbots.client import Body, Bundle, Query, Resource, ResourceList
from fhirbots.errors import OperationOutcomeError, error_of
from fhirbots.transport import RefusedError, Response, SyncTransport, TransportError

FHIR_JSON = "application/fhir+json"
JSON_PATCH = "application/json-patch+json"
ACCEPT = f"{FHIR_JSON}, */*; q=0.1"

_RETRIES = 2
_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 2.0
_EXPIRY_SECONDS = 300.0
_PAGE_SIZE = 1000
_POLL_SECONDS = 1.0
_SYSTEM = {
    "resourceType": "Device",
    "id": "system",
    "deviceName": [{"type": "model-name", "name": "System"}],
}


class SyncMedplumClient:
    """Asks a FHIR server; what a Bot's handler gets as its first argument.

    Every method raises :class:`~fhirbots.errors.OperationOutcomeError` when the server refuses, and
    :class:`~fhirbots.transport.TransportError` when no answer comes. An answer of 429 or 500 and above, and no answer, are
    tried twice more, unless the server asks for a longer wait than two seconds; 401 makes the client sign in again, once.
    What says who asks (token, cookies) is sent to this server only, whatever address a request names.

    Outside of a Bot::

        with SyncMedplumClient("https://fhir.example/") as medplum:
            medplum.start_client_login(client_id, client_secret)
            patient = medplum.read_resource("Patient", "123")
    """

    def __init__(
        self,
        base_url: str,
        *,
        transport: SyncTransport | None = None,
        access_token: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
        headers: Mapping[str, str] | None = None,
        fhir_path: str = "fhir/R4",
        profile: Resource | None = None,
    ) -> None:
        """
        Args:
            base_url: of the server, with or without a slash at its end.
            transport: default HTTP, which needs httpx.
            access_token: to send as Bearer token.
            client_id, client_secret: of a ClientApplication, to sign in with before the first request.
            headers: to send with each request.
            fhir_path: of the FHIR API below the base URL.
            profile: the answer of :meth:`get_profile` until a login gives another.
        """
        if transport is None:
            from fhirbots.http import SyncHttpTransport  # not in the sandbox, which has no HTTP

            transport = SyncHttpTransport()
        self.base_url = base_url.rstrip("/") + "/"
        self.key_value = SyncKeyValue(self)
        self._fhir_path = fhir_path.strip("/")
        self._fhir_base = f"{self.base_url}{self._fhir_path}/"
        self._transport = transport
        self._access_token = access_token
        self._expires = float("inf")
        self._credentials = (client_id, client_secret) if client_id and client_secret else None
        self._basic: str | None = None
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}
        self._session: dict[str, Any] = {"profile": profile} if profile else {}
        self._rate_limit = ""

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> SyncMedplumClient:
        """A client as the environment says: ``MEDPLUM_BASE_URL``, then ``MEDPLUM_CLIENT_ACCESS_TOKEN`` or
        ``MEDPLUM_CLIENT_ID`` with ``MEDPLUM_CLIENT_SECRET``; ``MEDPLUM_FHIR_URL_PATH`` if it is not ``fhir/R4``."""
        env = os.environ if environment is None else environment
        return cls(
            env.get("MEDPLUM_BASE_URL") or "http://127.0.0.1:8000/",
            access_token=env.get("MEDPLUM_CLIENT_ACCESS_TOKEN"),
            client_id=env.get("MEDPLUM_CLIENT_ID"),
            client_secret=env.get("MEDPLUM_CLIENT_SECRET"),
            fhir_path=env.get("MEDPLUM_FHIR_URL_PATH") or "fhir/R4",
        )

    def __enter__(self) -> SyncMedplumClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server."""
        self._transport.close()

    # Login ------------------------------------------------------------------------------------------------------------

    def start_client_login(self, client_id: str, client_secret: str) -> Resource | None:
        """Sign in as a ClientApplication; returns its profile."""
        self._credentials = (client_id, client_secret)
        self._sign_in()
        return self.get_profile()

    def set_access_token(self, token: str) -> None:
        """Send this Bearer token from now on."""
        self._access_token = token
        self._expires = float("inf")

    def get_access_token(self) -> str | None:
        """The Bearer token in use."""
        return self._access_token

    def set_basic_auth(self, client_id: str, client_secret: str) -> None:
        """Send id and secret with each request that has no token."""
        self._basic = b64encode(f"{client_id}:{client_secret}".encode()).decode()

    def sign_out(self) -> None:
        """Revoke the login."""
        self.post("oauth2/logout", {}, "application/json")
        self._access_token, self._credentials, self._session = None, None, {}

    def get_profile_now(self) -> Resource | None:
        """The profile the client acts as, asking the server if it is not known yet."""
        if not self._session.get("profile"):
            if self._credentials and not self._access_token:
                self._sign_in()
            else:
                self._load_session()
        return self.get_profile()

    def get_profile(self) -> Resource | None:
        """The profile the client acts as: in a Bot the Bot itself, or its user."""
        return self._session.get("profile")

    def get_project(self) -> Resource | None:
        """The Project, as far as the login tells."""
        return self._session.get("project")

    def get_project_membership(self) -> Resource | None:
        """The ProjectMembership, as far as the login tells."""
        return self._session.get("membership")

    def get_access_policy(self) -> Resource | None:
        """The AccessPolicy, if there is one and the login tells."""
        return self._session.get("accessPolicy")

    def get_user_configuration(self) -> Resource | None:
        """The UserConfiguration, as far as the login tells."""
        return self._session.get("config")

    def is_project_admin(self) -> bool:
        """Whether the login says that its membership is of an admin."""
        return bool((self.get_project_membership() or {}).get("admin"))

    def is_super_admin(self) -> bool:
        """Whether the login says that its project is the server's own."""
        return bool((self.get_project() or {}).get("superAdmin"))

    def invite(self, project_id: str, invitation: Mapping[str, Any]) -> Any:
        """Invite somebody to a project; the caller must be its admin."""
        return self.post(f"admin/projects/{project_id}/invite", invitation, "application/json")

    def _sign_in(self) -> None:
        assert self._credentials is not None
        client_id, client_secret = self._credentials
        form = urlencode(
            {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret}
        )
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "*/*"}
        answer = self._send_patiently("POST", f"{self.base_url}oauth2/token", headers, form.encode())
        if answer.status >= 400:
            raise _login_error(answer)
        try:
            granted = json.loads(answer.body)
            self._access_token = str(granted["access_token"])
        except (ValueError, KeyError, TypeError):
            text = f"{self.base_url}oauth2/token does not answer with a token: is the base URL right?"
            raise OperationOutcomeError.of(text, code="structure", status=answer.status) from None
        self._expires = time.time() + float(granted.get("expires_in") or 3600)
        self._load_session()

    def _load_session(self) -> None:
        headers = self._headers_of({}, None, ACCEPT)
        answer = self._send_patiently("GET", f"{self.base_url}auth/me", headers, None)
        if answer.status >= 400:
            raise error_of(answer.status, answer.content_type, answer.body)
        self._session = json.loads(answer.body)

    # Requests ---------------------------------------------------------------------------------------------------------

    def get(self, url: str, *, headers: Mapping[str, str] | None = None) -> Any:
        """GET an address, absolute or below the base URL: JSON as Python values, other text as str, nothing as None."""
        return _value_of(self.request("GET", url, headers=headers))

    def post(
        self,
        url: str,
        body: Body = None,
        content_type: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """POST; see :meth:`get`. The content type is FHIR JSON unless given."""
        return _value_of(self.request("POST", url, body, content_type, headers=headers))

    def put(
        self,
        url: str,
        body: Body = None,
        content_type: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """PUT; see :meth:`get`."""
        return _value_of(self.request("PUT", url, body, content_type, headers=headers))

    def patch(
        self, url: str, operations: Sequence[Mapping[str, Any]], *, headers: Mapping[str, str] | None = None
    ) -> Any:
        """PATCH with operations of JSON Patch; see :meth:`get`."""
        return _value_of(self.request("PATCH", url, operations, JSON_PATCH, headers=headers))

    def delete(self, url: str, *, headers: Mapping[str, str] | None = None) -> Any:
        """DELETE; see :meth:`get`."""
        return _value_of(self.request("DELETE", url, headers=headers))

    def request(
        self,
        method: str,
        url: str,
        body: Body = None,
        content_type: str | None = None,
        *,
        accept: str = ACCEPT,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send any request; returns the answer as it came unless its status is 400 or more."""
        data = _encode(body)
        if data is not None and content_type is None:
            content_type = FHIR_JSON
        if self._credentials and (not self._access_token or self._expires - time.time() < _EXPIRY_SECONDS):
            self._sign_in()
        if not url.startswith(self.base_url):
            try:
                url = urljoin(self.base_url, url)
            except ValueError as error:
                raise RefusedError(f"This is no address of a server: {error}") from None
        signed_in_again = False
        while True:
            sent = self._headers_of(headers or {}, content_type, accept, is_own=url.startswith(self.base_url))
            answer = self._send_patiently(method, url, sent, data)
            can_sign_in = self._credentials and url.startswith(self.base_url)
            if answer.status == 401 and can_sign_in and not signed_in_again:
                signed_in_again = True
                self._sign_in()
                continue
            if answer.status >= 400:
                raise error_of(answer.status, answer.content_type, answer.body)
            return answer

    def _headers_of(
        self, given: Mapping[str, str], content_type: str | None, accept: str, *, is_own: bool = True
    ) -> dict[str, str]:
        """``is_own``: for the server. Others, which keep files or are named in data, do not learn who asks."""
        headers = {"accept": accept}
        if content_type is not None:
            headers["content-type"] = content_type
        if is_own:
            headers["x-medplum"] = "extended"
            if self._access_token:
                headers["authorization"] = f"Bearer {self._access_token}"
            elif self._basic:
                headers["authorization"] = f"Basic {self._basic}"
            headers.update(self._headers)
        headers.update((name.lower(), value) for name, value in given.items())
        return headers

    def _send_patiently(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Response:
        """Send, and try twice more where that may help; every kind of request, as SyncMedplumClient does."""
        for attempt in range(_RETRIES + 1):
            wait = _RETRY_SECONDS * 1.5**attempt
            try:
                answer = self._transport.send(method, url, headers, body)
            except TransportError as error:
                if error.is_final or attempt == _RETRIES:
                    raise
            else:
                self._rate_limit = answer.headers.get("ratelimit", self._rate_limit)
                if answer.status == 429:
                    wait = max(wait, _reset_seconds(answer.headers.get("ratelimit", "")))
                wait = max(wait, _retry_after(answer.headers.get("retry-after", "")))
                patient = attempt < _RETRIES and wait <= _LONGEST_RETRY_SECONDS
                if not patient or not (answer.status == 429 or answer.status >= 500):
                    return answer
            time.sleep(wait)
        raise AssertionError("unreachable")

    def rate_limit_status(self) -> str:
        """The ``RateLimit`` header of the latest answer that had one."""
        return self._rate_limit

    # Addresses --------------------------------------------------------------------------------------------------------

    def fhir_url(self, *path: str) -> str:
        """Absolute address below the FHIR API: ``fhir_url("Bot", id, "$execute")``."""
        return self._fhir_base + "/".join(path)

    def fhir_search_url(self, resource_type: str, query: Query = None) -> str:
        """Absolute address of a search."""
        encoded = _query(query)
        return self.fhir_url(resource_type) + (f"?{encoded}" if encoded else "")

    def _here(self, url: str) -> str:
        """An address that the server gave, below the one we know it by: it may call itself otherwise."""
        _, found, rest = url.partition(f"/{self._fhir_path}/")
        return self._fhir_base + rest if found and not url.startswith(self.base_url) else url

    # Resources --------------------------------------------------------------------------------------------------------

    def create_resource(
        self, resource: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> Resource:
        """Create a resource; returns it with its id and meta."""
        return _resource(self.post(self.fhir_url(_type_of(resource)), resource, headers=headers))

    def create_resource_if_none_exist(
        self, resource: Mapping[str, Any], query: Query, *, headers: Mapping[str, str] | None = None
    ) -> Resource:
        """Create a resource, or return the one that the query finds."""
        condition = {"if-none-exist": _query(query), **(headers or {})}
        return self.create_resource(resource, headers=condition)

    def upsert_resource(
        self, resource: Mapping[str, Any], query: Query, *, headers: Mapping[str, str] | None = None
    ) -> Resource:
        """Update the resource that the query finds, or create it."""
        url = self.fhir_search_url(_type_of(resource), query)
        return _resource(self.put(url, resource, headers=headers))

    def update_resource(
        self, resource: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> Resource:
        """Replace a resource, which needs an id. ``headers={"If-Match": 'W/"version"'}`` refuses if it has changed."""
        id = resource.get("id")
        if not id:
            raise OperationOutcomeError.of("Missing id", code="required")
        answer = self.request("PUT", self.fhir_url(_type_of(resource), _id(id)), resource, headers=headers)
        return dict(resource) if answer.status == 304 else _resource(_value_of(answer))

    def patch_resource(
        self,
        resource_type: str,
        id: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Resource:
        """Apply JSON Patch: ``[{"op": "replace", "path": "/active", "value": False}]``."""
        return _resource(self.patch(self.fhir_url(resource_type, _id(id)), operations, headers=headers))

    def delete_resource(self, resource_type: str, id: str) -> Any:
        """Delete a resource; its history stays."""
        return self.delete(self.fhir_url(resource_type, _id(id)))

    def read_resource(
        self, resource_type: str, id: str, *, headers: Mapping[str, str] | None = None
    ) -> Resource:
        """Read a resource."""
        return _resource(self.get(self.fhir_url(resource_type, _id(id)), headers=headers))

    def read_reference(
        self, reference: Mapping[str, Any] | str, *, headers: Mapping[str, str] | None = None
    ) -> Resource:
        """Read what a Reference, or its text such as ``Patient/123``, points to."""
        text = reference if isinstance(reference, str) else reference.get("reference")
        if text == "system":
            return dict(_SYSTEM)
        resource_type, id, *_ = [*str(text or "").split("/"), ""]  # without a version, as SyncMedplumClient
        if not re.fullmatch(r"[A-Za-z]+", resource_type) or not id:
            raise OperationOutcomeError.of("Invalid reference: missing reference property", code="required")
        return self.read_resource(resource_type, id, headers=headers)

    def read_canonical(self, resource_type: str, url: str) -> Resource | None:
        """The resource with a canonical address; None if there is none."""
        return self.search_one(resource_type, {"url": url})

    def read_history(
        self, resource_type: str, id: str, *, count: int | None = None, offset: int | None = None
    ) -> Bundle:
        """The versions of a resource, newest first, as a Bundle."""
        query = _query({"_count": count, "_offset": offset})
        return _resource(
            self.get(self.fhir_url(resource_type, _id(id), "_history") + (f"?{query}" if query else ""))
        )

    def read_version(self, resource_type: str, id: str, version_id: str) -> Resource:
        """One version of a resource."""
        return _resource(self.get(self.fhir_url(resource_type, _id(id), "_history", version_id)))

    def validate_resource(self, resource: Mapping[str, Any]) -> Resource:
        """Check a resource without storing it; returns an OperationOutcome."""
        return _resource(self.post(self.fhir_url(_type_of(resource), "$validate"), resource))

    def create_comment(self, resource: Mapping[str, Any], text: str) -> Resource:
        """Create a Communication about a resource, sent by the client's own profile."""
        profile = self.get_profile()
        if profile is None:
            raise OperationOutcomeError.of("A comment needs a profile as its sender", code="required")
        reference = {"reference": f"{resource['resourceType']}/{resource['id']}"}
        patient = resource.get("subject") if resource["resourceType"] != "Patient" else reference
        comment = {
            "resourceType": "Communication",
            "status": "completed",
            "basedOn": [reference],
            "subject": patient,
            "sender": {"reference": f"{profile['resourceType']}/{profile['id']}"},
            "sent": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "payload": [{"contentString": text}],
        }
        return self.create_resource({name: value for name, value in comment.items() if value is not None})

    def execute_batch(self, bundle: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> Bundle:
        """Send a Bundle of type ``batch`` or ``transaction``; returns the Bundle of answers."""
        return _resource(self.post(self._fhir_base.rstrip("/"), bundle, headers=headers))

    # Search -----------------------------------------------------------------------------------------------------------

    def search(
        self, resource_type: str, query: Query = None, *, headers: Mapping[str, str] | None = None
    ) -> Bundle:
        """Search; returns the Bundle as it came."""
        return _resource(self.get(self.fhir_search_url(resource_type, query), headers=headers))

    def search_one(
        self, resource_type: str, query: Query = None, *, headers: Mapping[str, str] | None = None
    ) -> Resource | None:
        """The first resource a search finds; None if there is none."""
        pairs = [("_count", 1), *(pair for pair in _pairs(query) if pair[0] != "_count")]
        found = ResourceList(self.search(resource_type, pairs, headers=headers))
        return found[0] if found else None

    def search_resources(
        self, resource_type: str, query: Query = None, *, headers: Mapping[str, str] | None = None
    ) -> ResourceList:
        """The resources on the first page of a search; ``.bundle`` has links and total."""
        return ResourceList(self.search(resource_type, query, headers=headers))

    def search_resource_pages(
        self, resource_type: str, query: Query = None, *, headers: Mapping[str, str] | None = None
    ) -> Iterator[ResourceList]:
        """The resources of a search page by page, 1000 a page unless the query has a ``_count``."""
        pairs = _pairs(query)
        if not any(name == "_count" for name, _ in pairs):
            pairs.append(("_count", _PAGE_SIZE))
        while True:
            page = self.search_resources(resource_type, pairs, headers=headers)
            if not page:
                return
            yield page
            links = page.bundle.get("link") or ()
            following = next((link["url"] for link in links if link.get("relation") == "next"), None)
            if following is None:
                return
            pairs = parse_qsl(urlsplit(following).query, keep_blank_values=True)

    def value_set_expand(self, query: Query) -> Resource:
        """``ValueSet/$expand`` with parameters such as ``{"url": …, "filter": …, "count": 10}``."""
        return _resource(self.get(f"{self.fhir_url('ValueSet', '$expand')}?{_query(query)}"))

    def read_patient_everything(self, id: str, query: Query = None) -> Bundle:
        """All there is of a patient."""
        encoded = _query(query)
        url = self.fhir_url("Patient", _id(id), "$everything")
        return _resource(self.get(f"{url}?{encoded}" if encoded else url))

    def read_patient_summary(self, id: str) -> Bundle:
        """The summary of a patient."""
        return _resource(self.get(self.fhir_url("Patient", _id(id), "$summary")))

    def read_resource_graph(self, resource_type: str, id: str, graph: str) -> Bundle:
        """What a GraphDefinition finds from a resource on."""
        return _resource(
            self.get(f"{self.fhir_url(resource_type, _id(id), '$graph')}?graph={quote(graph, safe='')}")
        )

    def graphql(
        self,
        query: str,
        operation_name: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Send a GraphQL query; returns the answer with ``data`` and ``errors``."""
        body = {"query": query, "operationName": operation_name, "variables": variables}
        return _resource(self.post(self.fhir_url("$graphql"), body, "application/json"))

    # Bots and operations ----------------------------------------------------------------------------------------------

    def execute_bot(
        self,
        bot: str | Mapping[str, Any],
        body: Body = None,
        content_type: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Run a Bot, by its id or by an Identifier (``{"system": …, "value": …}``); returns what its handler answered."""
        if isinstance(bot, str):
            url = self.fhir_url("Bot", bot, "$execute")
        else:
            identifier = quote(f"{bot.get('system') or ''}|{bot['value']}", safe="")
            url = f"{self.fhir_url('Bot', '$execute')}?identifier={identifier}"
        return self.post(url, body, content_type, headers=headers)

    def start_async_request(
        self,
        method: str,
        url: str,
        body: Body = None,
        content_type: str | None = None,
        *,
        period: float = _POLL_SECONDS,
    ) -> Any:
        """Ask with ``Prefer: respond-async`` and wait: the answer of the status address once it is no longer 202."""
        answer = self.request(method, url, body, content_type, headers={"prefer": "respond-async"})
        status = answer.headers.get("content-location") or _diagnostics(answer)
        while answer.status == 202 and status:
            time.sleep(period)
            answer = self.request("GET", self._here(status))
        return _value_of(answer)

    def bulk_export(
        self,
        level: str = "",
        types: Sequence[str] = (),
        since: str | None = None,
        *,
        period: float = _POLL_SECONDS,
    ) -> dict[str, Any]:
        """``$export`` of the system, of ``Patient`` or of ``Group/123``; returns the manifest, whose ``output`` lists files."""
        query = _query({"_type": list(types) or None, "_since": since})
        url = self.fhir_url(*([level] if level else []), "$export") + (f"?{query}" if query else "")
        return _resource(self.start_async_request("POST", url, period=period))

    def push_to_agent(
        self,
        agent: str | Mapping[str, Any],
        destination: str | Mapping[str, Any],
        body: Body,
        content_type: str,
        *,
        wait_for_response: bool = False,
        wait_timeout: int | None = None,
    ) -> Any:
        """Send a message to a device through an Agent."""
        agent_id = agent if isinstance(agent, str) else agent["id"]
        target = destination if isinstance(destination, str) else f"Device/{destination['id']}"
        pushed: dict[str, Any] = {
            "destination": target,
            "body": body if isinstance(body, str) else json.dumps(body),
            "contentType": content_type,
            "waitForResponse": wait_for_response,
        }
        if wait_timeout is not None:
            pushed["waitTimeout"] = wait_timeout
        return self.post(self.fhir_url("Agent", agent_id, "$push"), pushed)

    def get_cds_services(self) -> dict[str, Any]:
        """The CDS services that the server offers."""
        return _resource(self.get("cds-services"))

    def call_cds_service(self, id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Call a CDS service; returns its cards."""
        return _resource(self.post(f"cds-services/{id}", body, "application/json"))

    # Files ------------------------------------------------------------------------------------------------------------

    def create_binary(
        self,
        data: bytes | str,
        filename: str | None = None,
        content_type: str = "application/octet-stream",
        *,
        security_context: Mapping[str, Any] | None = None,
    ) -> Resource:
        """Store a file; returns the Binary, with an address in ``url``. Who may read ``security_context`` (a Reference)
        may read the file."""
        url = self.fhir_url("Binary") + (f"?_filename={quote(filename, safe='')}" if filename else "")
        headers = {"x-security-context": security_context["reference"]} if security_context else {}
        return _resource(self.post(url, data, content_type, headers=headers))

    def create_attachment(
        self,
        data: bytes | str,
        filename: str | None = None,
        content_type: str = "application/octet-stream",
        *,
        security_context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Store a file; returns an Attachment that points to it."""
        binary = self.create_binary(data, filename, content_type, security_context=security_context)
        attachment = {"contentType": content_type, "url": binary.get("url") or f"Binary/{binary['id']}"}
        return attachment | ({"title": filename} if filename else {})

    def create_document_reference(
        self,
        data: bytes | str,
        filename: str | None = None,
        content_type: str = "application/octet-stream",
        *,
        elements: Mapping[str, Any] | None = None,
    ) -> Resource:
        """Store a file with a DocumentReference; ``elements`` are further elements of it."""
        pending = {"contentType": content_type} | ({"title": filename} if filename else {})
        document = self.create_resource(
            {
                "resourceType": "DocumentReference",
                "status": "current",
                "content": [{"attachment": pending}],
                **(elements or {}),
            }
        )
        context = {"reference": f"DocumentReference/{document['id']}"}
        attachment = self.create_attachment(data, filename, content_type, security_context=context)
        return self.update_resource(document | {"content": [{"attachment": attachment}]})

    def create_media(
        self,
        data: bytes | str,
        filename: str | None = None,
        content_type: str = "application/octet-stream",
        *,
        elements: Mapping[str, Any] | None = None,
    ) -> Resource:
        """Store a file with a Media resource; ``elements`` are further elements of it."""
        pending = {"contentType": content_type} | ({"title": filename} if filename else {})
        media = self.create_resource(
            {"resourceType": "Media", "status": "preparation", "content": pending, **(elements or {})}
        )
        context = {"reference": f"Media/{media['id']}"}
        attachment = self.create_attachment(data, filename, content_type, security_context=context)
        return self.update_resource(media | {"status": "completed", "content": attachment})

    def download(self, url: str) -> bytes:
        """The bytes of a file, by an absolute address or as ``Binary/123``. Another server is asked without the token."""
        if url.startswith("Binary/"):
            url = self.fhir_url(url)
        return (self.request("GET", url, accept="*/*")).body

    # Mail and keys ----------------------------------------------------------------------------------------------------

    def send_email(self, email: Mapping[str, Any]) -> Any:
        """Send an e-mail: ``{"to": …, "subject": …, "text": …, "html": …, "attachments": […]}``."""
        return self.post("email/v1/send", email, "application/json")


class SyncKeyValue:
    """Texts by key that belong to the client's profile: ``medplum.key_value.get("cursor")``."""

    def __init__(self, client: SyncMedplumClient) -> None:
        self._client = client

    def get(self, key: str) -> str | None:
        """The text of a key; None if there is none."""
        try:
            answer = self._client.request("GET", _key_url(key), accept="*/*")
        except OperationOutcomeError as error:
            if error.status == 404:
                return None
            raise
        return answer.body.decode()

    def set(self, key: str, value: str) -> None:
        """Keep a text under a key."""
        self._client.put(_key_url(key), value, "text/plain")

    def delete(self, key: str) -> None:
        """Forget a key."""
        self._client.delete(_key_url(key))


# Small things ---------------------------------------------------------------------------------------------------------


def _encode(body: Body) -> bytes | None:
    if body is None:
        return None
    if isinstance(body, str):
        return body.encode("utf-8", "replace")
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return text.encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """JSON for what has none of its own: dates as ISO text, other mappings and sequences as dict and list."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"A value of type {type(value).__name__} cannot be sent as JSON")


def _value_of(answer: Response) -> Any:
    if answer.status in (204, 304) or not answer.body:
        return None
    if "json" in answer.content_type:
        return json.loads(answer.body)
    return answer.body.decode("utf-8", "replace")


def _resource(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OperationOutcomeError.of("The server did not answer with a JSON object", code="structure")
    return value


def _type_of(resource: Mapping[str, Any]) -> str:
    resource_type = resource.get("resourceType")
    if not resource_type:
        raise OperationOutcomeError.of("Missing resourceType", code="required")
    return str(resource_type)


def _id(id: str) -> str:
    """The id, unless it would change the address that it becomes part of: it may come from data."""
    if not id:
        raise OperationOutcomeError.of("The id of a resource cannot be empty", code="required")
    if id in (".", "..") or not re.fullmatch(r"[A-Za-z0-9._-]+", id):
        raise OperationOutcomeError.of(
            "The id of a resource has letters, digits, dashes and dots", code="value"
        )
    return id


def _pairs(query: Query) -> list[tuple[str, Any]]:
    if query is None:
        return []
    if isinstance(query, str):
        return list(parse_qsl(query.lstrip("?"), keep_blank_values=True))
    return list(query.items() if isinstance(query, Mapping) else query)


def _query(query: Query) -> str:
    return urlencode([(name, _text_of(value)) for name, value in _pairs(query) if value is not None])


def _text_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(map(_text_of, value))
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def _key_url(key: str) -> str:
    return f"keyvalue/v1/{quote(key, safe='')}"


def _reset_seconds(limits: str) -> float:
    """The wait that a ``RateLimit`` header asks for: its largest ``t=`` whose rest ``r=`` is used up."""
    waits = [0.0]
    for limit in limits.split(","):
        fields = dict(part.strip().split("=", 1) for part in limit.split(";") if "=" in part)
        if fields.get("r") == "0" and fields.get("t", "").isdigit():
            waits.append(float(fields["t"]))
    return max(waits)


def _retry_after(text: str) -> float:
    """The wait that a ``Retry-After`` header asks for, in seconds or by a date; 0 where it says nothing."""
    if text.strip().isdigit():
        return float(text)
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except ValueError:
        return 0.0


def _diagnostics(answer: Response) -> str | None:
    value = _value_of(answer)
    issues = value.get("issue") or [{}] if isinstance(value, dict) else [{}]
    found = issues[0].get("diagnostics")
    return found if isinstance(found, str) and found.startswith("http") else None


def _login_error(answer: Response) -> OperationOutcomeError:
    try:
        said = json.loads(answer.body)
        text = said.get("error_description") or said.get("error")
    except (ValueError, AttributeError):
        text = None
    if not text:
        return error_of(answer.status, answer.content_type, answer.body)
    return OperationOutcomeError.of(str(text), code="login", id="unauthorized", status=answer.status)
