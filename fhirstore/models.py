"""The Django models of the store: accounts, logins and keys.

FHIR resources are no Django models: `repository.py` owns their tables. What stands here are credentials, which must
never be readable through the FHIR API, and two projections of resources (`Membership`, `ClientCredential`) that
answer "who is this?" before a project is known. The projections are written by `auth/accounts.py` in the same
transaction as the resource they follow.
"""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager
from django.db import models


class UserManager(BaseUserManager["User"]):
    """Users by e-mail address, which is compared without case."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Create a user.

        Args:
            email: address to sign in with.
            password: None makes a user who cannot sign in by password yet.
            fields: further model fields.
        """
        if not email:
            raise ValueError("A user needs an email address.")
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def get_by_natural_key(self, username: str | None) -> User:
        """Find the user of an e-mail address; raises `User.DoesNotExist`."""
        return self.get(email=(username or "").strip().lower())


class User(AbstractBaseUser):
    """A person who can sign in. Referred to as ``User/{id}`` in ``ProjectMembership.user``."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField(unique=True)
    first_name = models.CharField(max_length=200, blank=True)
    last_name = models.CharField(max_length=200, blank=True)
    is_active = models.BooleanField(default=True)
    password_project = models.UUIDField(null=True)
    """The project whose admin has given the password; None for one set by a link that was mailed, or by the operator."""
    created = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"

    def __str__(self) -> str:
        return self.email

    def get_full_name(self) -> str:
        """First and last name, else the e-mail address."""
        return f"{self.first_name} {self.last_name}".strip() or self.email


class Membership(models.Model):
    """Projection of a ProjectMembership: which project it belongs to and who it stands for."""

    id = models.UUIDField(primary_key=True)
    project = models.UUIDField(db_index=True)
    user = models.CharField(max_length=200, db_index=True)
    """``User/{id}``, ``Bot/{id}`` or ``ClientApplication/{id}``."""
    profile = models.CharField(max_length=200, db_index=True)
    """``Practitioner/{id}``, ``Bot/{id}``, ``ClientApplication/{id}`` and so on."""
    active = models.BooleanField(default=True)
    """``ProjectMembership.active`` is not false."""

    def __str__(self) -> str:
        return f"ProjectMembership/{self.id}"


class ClientCredential(models.Model):
    """The secrets of a ClientApplication, as keyed digests (`auth/keys.py`); the resource itself never holds them."""

    client = models.UUIDField(primary_key=True)
    project = models.UUIDField()
    digest = models.BinaryField(null=True)
    retiring_digest = models.BinaryField(null=True)
    """Digest of ``ClientApplication.retiringSecret``: the former secret, valid until it is removed."""

    def __str__(self) -> str:
        return f"ClientApplication/{self.client}"


class Secret(models.Model):
    """A secret of a Project or Bot, encrypted (`secrets.py`)."""

    project = models.UUIDField()
    owner = models.CharField(max_length=128)
    """``Project``, or the reference of a Bot."""
    kind = models.CharField(max_length=16)
    """``secret``, ``systemSecret`` or ``env``."""
    name = models.TextField()
    value = models.BinaryField()
    """The item as JSON, encrypted with a key derived from SECRET_KEY."""
    updated = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "owner", "kind", "name"], name="fhirstore_secret_once")
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.owner}"


class KeyValue(models.Model):
    """A text that a profile keeps under a key: ``/keyvalue/v1/{key}``."""

    project = models.UUIDField()
    owner = models.CharField(max_length=200)
    """Reference of the profile."""
    key = models.CharField(max_length=500)
    value = models.TextField()
    updated = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "owner", "key"], name="fhirstore_keyvalue_once")
        ]

    def __str__(self) -> str:
        return f"{self.key} of {self.owner}"


class Login(models.Model):
    """One sign-in, from which tokens are issued; its id is the ``login_id`` claim. Revoking it ends its tokens.

    Codes and refresh tokens are stored as keyed digests only.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    project = models.UUIDField()
    membership = models.UUIDField(db_index=True)
    user = models.ForeignKey(User, null=True, on_delete=models.CASCADE)
    """The person, None for a client acting for itself."""
    client = models.CharField(max_length=200, blank=True)
    """Id of the ClientApplication, or the name of a built-in public client."""
    auth_method = models.CharField(max_length=20)
    """``client``, ``password`` and so on: Medplum's ``Login.authMethod``."""
    auth_time = models.DateTimeField(auto_now_add=True, db_index=True)
    scope = models.CharField(max_length=1000, default="openid")
    nonce = models.CharField(max_length=1000, blank=True)
    redirect_uri = models.CharField(max_length=2000, blank=True)
    code_digest = models.BinaryField(null=True, unique=True)
    code_expires = models.DateTimeField(null=True)
    code_challenge = models.CharField(max_length=200, blank=True)
    code_challenge_method = models.CharField(max_length=10, blank=True)
    granted = models.DateTimeField(null=True)
    """When the code was redeemed; a code works once."""
    refresh_digest = models.BinaryField(null=True, unique=True)
    refresh_previous_digest = models.BinaryField(null=True, unique=True)
    """The refresh token before the last rotation, accepted for a short overlap."""
    refresh_rotated = models.DateTimeField(null=True)
    refresh_expires = models.DateTimeField(null=True)
    access_expires = models.DateTimeField(null=True)
    """When its last access token ends. None: not known, of logins older than this column; they stay until they are revoked."""
    revoked = models.DateTimeField(null=True)
    remote_address = models.GenericIPAddressField(null=True)
    user_agent = models.CharField(max_length=500, blank=True)

    def __str__(self) -> str:
        return f"Login/{self.id}"


class SigningKey(models.Model):
    """A key pair that signs tokens. The newest one signs; all of them verify and stand in the JWKS."""

    kid = models.CharField(max_length=64, primary_key=True)
    algorithm = models.CharField(max_length=10)
    public_jwk = models.JSONField()
    private_encrypted = models.BinaryField()
    """The private JWK as JSON, encrypted with a key derived from SECRET_KEY."""
    created = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.kid


class Failure(models.Model):
    """Failed attempts to sign in, counted by `auth/throttle.py`."""

    key = models.BinaryField(primary_key=True)
    count = models.IntegerField()
    last = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.count} failures"
