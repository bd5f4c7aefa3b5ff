"""The API's part of the site: FHIR, login, administration, storage (paths as Medplum's)."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, path, re_path

from fhirstore import admin_api
from fhirstore.auth import people
from fhirstore.auth import views as auth
from fhirstore.rest import keyvalue, mail, openapi, views

_ROOT = r"^(?P<prefix>(?:api/)?(?:projects/(?P<project>[^/]+)/)?fhir/R4)"

urlpatterns: list[URLPattern | URLResolver] = [
    re_path(r"^(?:api/)?(?:projects/[^/]+/)?fhir/R4/(?P<name>metadata|\$versions)$", views.metadata),
    re_path(r"^(?:fhir/R4/)?\.well-known/smart-configuration$", auth.openid_configuration),
    path("openapi.json", openapi.openapi),
    re_path(_ROOT + r"(?:/(?P<path>.*))?$", views.fhir),
    path("storage/<str:id>/<str:version>", views.storage),
    path("oauth2/authorize", auth.authorize),
    path("oauth2/token", auth.token),
    path("oauth2/logout", auth.logout),
    path("oauth2/introspect", auth.introspect),
    path("oauth2/revoke", auth.revoke),
    path("oauth2/userinfo", auth.userinfo),
    path("auth/me", auth.me),
    path("auth/login", people.LoginView.as_view()),
    path("auth/profile", people.ProfileView.as_view()),
    path("auth/method", people.MethodView.as_view()),
    path("auth/changepassword", people.ChangePasswordView.as_view()),
    path("auth/resetpassword", people.ResetPasswordView.as_view()),
    path("auth/setpassword", people.SetPasswordView.as_view()),
    path("auth/revoke", people.RevokeView.as_view()),
    path("auth/clientinfo/<str:client>", people.ClientInfoView.as_view()),
    path(".well-known/openid-configuration", auth.openid_configuration),
    path(".well-known/oauth-authorization-server", auth.openid_configuration),
    path(".well-known/oauth-protected-resource", auth.protected_resource),
    path(".well-known/jwks.json", auth.jwks),
    path("email/v1/send", mail.send_email),
    re_path(r"^keyvalue/v1/(?P<key>.+)$", keyvalue.keyvalue),
    path("admin/projects/setpassword", admin_api.SetPasswordView.as_view()),
    path("admin/projects/<str:project>", admin_api.ProjectView.as_view()),
    path("admin/projects/<str:project>/client", admin_api.ClientView.as_view()),
    path("admin/projects/<str:project>/invite", admin_api.InviteView.as_view()),
    path("admin/projects/<str:project>/settings", admin_api.ListView.as_view(element="setting")),
    path("admin/projects/<str:project>/secrets", admin_api.ListView.as_view(element="secret")),
    path("admin/projects/<str:project>/sites", admin_api.ListView.as_view(element="site")),
    path("admin/projects/<str:project>/members/<str:membership>", admin_api.MemberView.as_view()),
    path(
        "admin/projects/<str:project>/members/<str:membership>/resetpassword",
        admin_api.MemberPasswordView.as_view(),
    ),
]
