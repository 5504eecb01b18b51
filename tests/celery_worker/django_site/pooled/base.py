"""SQLite with a pool of connections, as Django's backend for PostgreSQL has one: it is of use only
in the process that has made it, as a fork does not copy its threads."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from django.db.backends.sqlite3 import base
from django.db.utils import InternalError


class DatabaseWrapper(base.DatabaseWrapper):
    pools: ClassVar[dict[str, int]] = {}  # the process that has made it

    def get_connection_params(self) -> dict[str, Any]:
        params = super().get_connection_params()
        params.pop("pool")
        return params

    def get_new_connection(self, params: dict[str, Any]) -> Any:
        if self.settings_dict["OPTIONS"]["pool"]:
            maker = self.pools.setdefault(self.alias, os.getpid())
            if maker != os.getpid():
                raise InternalError(f"this pool was made by process {maker}")
        return super().get_new_connection(params)

    def close_pool(self) -> None:
        del self.pools[self.alias]
