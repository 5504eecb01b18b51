"""Those of a site that keeps its connections open, which no other process may use then."""

import os

SECRET_KEY = "none"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django_site"]
DATABASES = {
    "default": {
        "ENGINE": "django_site.pooled",
        "NAME": os.environ.get("SITE_DATABASE"),
        "CONN_MAX_AGE": None,  # for ever
        "OPTIONS": {"pool": True, "timeout": 20},
    }
}
CELERY_BROKER_URL = os.environ.get("PROJECT_BROKER")
CELERY_RESULT_BACKEND = os.environ.get("PROJECT_BACKEND")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
