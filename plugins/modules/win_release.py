# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What wsgi.fleet.win_release takes and answers. It is an action plugin; the host's half is module_utils/windows."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: win_release
short_description: Builds releases of Python applications on Windows, and brings them to life
version_added: 0.1.0
description:
  - The part of role C(waitress_windows) for which Windows has no modules. It runs in the host's own Python, which it is
    given, and reaches the host as M(ansible.windows.win_command) does. Request and secrets travel on standard input.
  - O(state=built) builds the releases that are missing and says which services, rights and firewall rules the host
    should have.
  - O(state=live) configures the instances, restarts those that are not what they should be one after the other, asks
    each over HTTP, and goes back to what was good last when one does not answer well. Before visitors meet another
    release, the first instance answers from it at a port that nobody knows.
  - O(state=finished) notes that what is live is good, and removes old releases and what was made for applications that
    are gone.
  - O(state=returned) goes back to a release that was good, with the configuration that it was good with.
  - O(state=asked) asks every instance, and O(state=listed) tells of the releases; both change nothing.
  - O(state=maintained) closes sites of nginx for maintenance and opens them again, by what O(request.maintenance) says.
  - O(state=held) and O(state=released) are to Windows hosts what module M(wsgi.fleet.lock) is to others.
author: The wsgi.fleet maintainers
requirements: ["On the host: a complete Python 3.9 or newer"]
attributes:
  check_mode:
    description: Told by O(request.check). Give the task C(check_mode=false), or the command that carries it is skipped.
    support: partial
  diff_mode:
    description: Shows configuration, never secrets.
    support: full
options:
  state:
    description: What to do.
    type: str
    choices: [built, live, finished, returned, asked, maintained, listed, held, released]
    default: built
  request:
    description: What to do it with; the same for every O(state).
    type: dict
    required: true
    suboptions:
      check:
        description: Change nothing, and say what would change.
        type: bool
        default: false
      bare:
        description: The host has no Python yet, so that nothing can be asked there. For check mode.
        type: bool
        default: false
      root:
        description: Directory of programs and releases.
        type: str
        required: true
      data:
        description: Directory of configuration, logs and files.
        type: str
        required: true
      python:
        description: The host's python.exe.
        type: str
        required: true
      python_version:
        description: Its version. Major and minor number are part of what names a release.
        type: str
        required: true
      service_host:
        description: Text of the program that runs as the services.
        type: str
        required: true
      apps:
        description: Records as C(waitress_windows_apps).
        type: list
        elements: dict
        required: true
      removed:
        description: Records as C(waitress_windows_removed).
        type: list
        elements: dict
        default: []
      rules:
        description: The firewall's rules that are wanted; others of ours are answered as obsolete.
        type: list
        elements: dict
        default: []
      front:
        description: nginx in front, with C(archive), C(checksum), C(files), C(config), C(status_port). Empty is none.
        type: dict
        default: {}
      maintenance:
        description:
          - What nginx is told of the sites in maintenance - C(files) below its C(conf), as C(front) has them, none when
            all are open; and its C(status_port), which O(state=asked) needs too.
        type: dict
        default: {}
      wheelhouse:
        description: Directory of wheels on the controller. When it is given, no index is asked.
        type: str
        default: ""
      releases:
        description:
          - What O(state=built) answered as RV(apps). The sources are not asked again then, which might have moved on.
        type: dict
        default: {}
      only:
        description:
          - The applications to deal with; empty is all. With some, nginx and what others left behind are not touched,
            and an application whose instances or ports are not those that the host has is refused.
        type: list
        elements: str
        default: []
      return:
        description: For O(state=returned).
        type: dict
        default: {}
        suboptions:
          to:
            description: Releases by application to go back to, instead of those that were good last.
            type: dict
            default: {}
          previous:
            description: Whether what is live is left even when it was good.
            type: bool
            default: false
          reason:
            description: Why a release is left, which makes it bad. Without a reason it does not count as bad.
            type: str
            default: ""
      lock:
        description:
          - For O(state=held) and O(state=released) - C(names), and C(purpose), C(seconds), C(break_locks) as module
            M(wsgi.fleet.lock) has them.
        type: dict
        default: {}
      environment:
        description: Environment of pip and downloads.
        type: dict
        default: {}
      timeout:
        description: Seconds that one step of a build may take.
        type: int
        default: 900
      bad:
        description: What to do about a release that is wanted, but was found to be bad while another is live.
        type: str
        choices: [keep, refuse, retry]
        default: keep
"""

EXAMPLES = r"""
- name: Build the releases
  wsgi.fleet.win_release:
    request:
      root: C:\Program Files\wsgi-fleet
      data: C:\ProgramData\wsgi-fleet
      python: C:\Python313\python.exe
      python_version: "3.13"
      service_host: "{{ lookup('ansible.builtin.file', 'wsgi_host.py') }}"
      apps: [{name: shop, source: {path: shop}, callable: "wsgi:app", port: 8001}]
      check: "{{ ansible_check_mode }}"
  check_mode: false
  register: built
"""

RETURN = r"""
actions:
  description: What was done, in words.
  returned: always
  type: list
  elements: str
apps:
  description: For each application the release that it should have (C(id)) and the one that is configured (C(live)).
  returned: when the host was asked
  type: dict
pending:
  description: Applications for which O(state=live) has something to do.
  returned: O(state=built)
  type: list
  elements: str
releases:
  description: The complete releases, as module M(wsgi.fleet.releases) gives them.
  returned: O(state=listed)
  type: list
  elements: dict
holders:
  description: Who holds the locks that were asked for and are not had, by name.
  returned: O(state=held)
  type: dict
results:
  description: The answers of the instances, as M(wsgi.fleet.probe) gives them.
  returned: O(state=asked)
  type: list
  elements: dict
look:
  description:
    - "The live releases, a line C(APP/current releases/ID) for each application."
    - Where sites are in maintenance, a line of JSON that says so.
  returned: O(state=asked)
  type: str
maintenance:
  description:
    - Whether the running nginx has the switch (C(known)), the host's time (C(now)), and that line in base64 (C(state)).
  returned: O(state=asked)
  type: dict
in_maintenance:
  description: Who is in maintenance and since when, for people.
  returned: O(state=finished)
  type: str
failures:
  description: For each application that failed the step, the problem and a fix where one is known.
  returned: failure
  type: list
  elements: dict
services:
  description: The services that the host should have, for M(ansible.windows.win_service).
  returned: O(state=built)
  type: list
  elements: dict
obsolete_services:
  description: Services of ours that it has and should not.
  returned: O(state=built)
  type: list
  elements: str
obsolete_rules:
  description: Firewall rules of ours that it has and should not.
  returned: O(state=built)
  type: list
  elements: str
rights:
  description: Who may what on which directory, for M(ansible.windows.win_acl).
  returned: O(state=built)
  type: list
  elements: dict
"""
