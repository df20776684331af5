"""Filters of playbooks/status.yml; each has its documentation beside this file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils.plan import _status


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "backend_probes": _status.backend_probes,
            "edge_probes": _status.edge_probes,
            "inner_probes": _status.inner_probes,
            "status_rows": _status.status_rows,
            "table": _status.table,
        }
