"""The web console and the Django project: settings, URLs, Celery, the processes."""
