from __future__ import annotations

import os
import signal

from celery import shared_task
from django.db import transaction

from django_site.models import Note
from gate import Door


@shared_task
def write(text, address=None):
    """Leave a note, and wait at the test's gate."""
    note = Note.objects.create(text=text, pid=os.getpid())
    if address is not None:
        Door(tuple(address)).enter()
    return note.id


@shared_task
def read(text):
    return list(Note.objects.filter(text=text).order_by("id").values_list("id", "pid"))


@shared_task
def write_and_fail(text):
    with transaction.atomic():
        write(text)
        raise ValueError("this is rolled back")


@shared_task
def write_and_die(text):
    with transaction.atomic():
        write(text)
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task
def write_later(text, queue):
    with transaction.atomic():
        write.apply_async_on_commit((text,), queue=queue)
