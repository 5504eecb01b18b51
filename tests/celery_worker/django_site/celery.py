"""The application; and code in the worker's main process that leaves a connection open there."""

from __future__ import annotations

import os

from celery import Celery, signals

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_site.settings")
app = Celery("django_site")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@signals.worker_init.connect
def make_tables(**kwargs: object) -> None:
    from django.db import connection

    from django_site.models import Note

    if Note._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Note)


@signals.worker_before_create_process.connect
def use_the_database(**kwargs: object) -> None:
    from django_site.models import Note

    Note.objects.count()
