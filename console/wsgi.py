"""WSGI entry point: ``granian --interface wsgi console.wsgi:application``."""

import os

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application

from console.child import die_with_parent

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")

# set by `manage.py start`, where the parent is granian's main process
if os.environ.get("FHIRBOTS_DIE_WITH_PARENT"):
    die_with_parent(os.getppid())
if not settings.SECRET_KEY:
    raise ImproperlyConfigured("Set SECRET_KEY (50 random characters); `manage.py start` makes one.")

application = get_wsgi_application()
