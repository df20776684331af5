"""The linear strategy, over mitogen where it is installed."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: mitogen
short_description: The linear strategy, several times faster where mitogen is installed
version_added: 0.1.0
author: The wsgi.fleet maintainers
description:
  - Set E(ANSIBLE_STRATEGY=wsgi.fleet.mitogen) and tasks go to the hosts through mitogen, which keeps a process on
    each host for the whole run.
  - Without mitogen on the control node, or with a version of it that does not load, the run goes on with the linear
    strategy and says so.
"""

from ansible.plugins.strategy.linear import StrategyModule as LinearStrategy
from ansible.utils.display import Display

try:
    # mitogen patches Ansible's internals: a version that does not fit fails here, in whatever way.
    from ansible_mitogen.strategy import StrategyMixin
except Exception as error:  # noqa: BLE001
    Display().warning(
        f"mitogen cannot be used ({error}); this run takes the usual way. To install it: pip install mitogen"
    )

    class StrategyMixin:  # type: ignore[no-redef]
        """Adds nothing: the linear strategy alone."""


class StrategyModule(StrategyMixin, LinearStrategy):  # type: ignore[misc]
    """Mitogen's way to the hosts, in Ansible's own order of tasks."""
