# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters of the plan, each with its own documentation beside this file. The thinking is in module_utils/plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wsgi.fleet.plugins.module_utils import plan as fleet


def plan(apps: object, groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """Interpret the records, or fail with everything that is wrong with them."""
    try:
        return fleet.make_plan(apps, groups, hostvars)
    except fleet.PlanError as error:
        raise AnsibleFilterError(str(error)) from None


def nginx_maintenance(plan: Mapping[str, Any], host: str, given: Mapping[str, Any], now: str) -> list[dict[str, Any]]:
    """Pick what concerns a host, or fail with everything that is wrong with what was asked for."""
    try:
        return fleet.nginx_maintenance(plan, host, given, now)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    """Names the filters."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Return the filters by name."""
        return {
            "plan": plan,
            "plan_errors": fleet.find_errors,
            "members": fleet.members,
            "python_packages": fleet.python_packages,
            "python_versions": fleet.python_versions,
            "apache_sites": fleet.apache_sites,
            "app_apps": fleet.app_apps,
            "chosen_apps": fleet.chosen_apps,
            "deploy_blame": fleet.deploy_blame,
            "deploy_errors": fleet.deploy_errors,
            "deploy_problems": fleet.deploy_problems,
            "deploy_report": fleet.deploy_report,
            "release_rows": fleet.release_rows,
            "access_logs": fleet.access_logs,
            "edge_logs": fleet.edge_logs,
            "endpoints": fleet.inner_endpoints,
            "migrating": fleet.migrating,
            "app_removed": fleet.app_removed,
            "gunicorn_instances": fleet.gunicorn_instances,
            "served_otherwise": fleet.served_otherwise,
            "supervisor_programs": fleet.supervisor_programs,
            "mod_wsgi_instances": fleet.mod_wsgi_instances,
            "nginx_sites": fleet.nginx_sites,
            "nginx_challenges": fleet.nginx_challenges,
            "acme_certificates": fleet.acme_certificates,
            "nginx_maintenance": nginx_maintenance,
            "maintenance_errors": fleet.maintenance_errors,
            "ufw_rules": fleet.ufw_rules,
            "waitress_instances": fleet.waitress_instances,
            "wheelhouse_hosts": fleet.wheelhouse_hosts,
            "windows_apps": fleet.windows_apps,
            "windows_removed": fleet.windows_removed,
            "windows_sites": fleet.windows_sites,
            "windows_firewall_rules": fleet.windows_firewall_rules,
        }
