"""Those of a site that keeps its connections open, which no other process may use then."""

import os

from celery.fixups.django import DjangoWorkerFixup

NEWER = hasattr(DjangoWorkerFixup, "_is_prefork")
"""Older celery knows no pools of connections, and lets a connection live on after the task."""

SECRET_KEY = "none"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django_site"]
DATABASES = {
    "default": {
        "ENGINE": "django_site.pooled",
        "NAME": os.environ.get("SITE_DATABASE"),
        "CONN_MAX_AGE": None if NEWER else 0,  # None: for ever
        "OPTIONS": {"pool": NEWER, "timeout": 20},
    }
}
CELERY_BROKER_URL = os.environ.get("PROJECT_BROKER")
CELERY_RESULT_BACKEND = os.environ.get("PROJECT_BACKEND")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_PROC_ALIVE_TIMEOUT = 30
