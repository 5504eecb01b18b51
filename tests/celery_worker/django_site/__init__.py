"""A Django site whose tasks run in celery; `django_site.celery` is its application."""

from django_site.celery import app

__all__ = ["app"]
