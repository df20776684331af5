#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Configuration files as one change: rendered together, tested together, put in place together."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tree
short_description: Put a tested set of configuration files in place, and remove what is no longer wanted
description:
  - Renders all files on the controller and compares them with the host. When something differs, tests them in a copy of
    the whole directory before any live file is touched. Only then each file is replaced by a rename.
  - Files that an earlier run with the same O(name) put there and that are not in O(files) any more are removed, and so
    are directories that became empty and that this module had made. Files that it did not make are left alone.
  - Costs one round trip, whether there is something to do or not.
notes:
  - "What is atomic: every file by itself. The files of one change follow each other within milliseconds, not at once.
    A run that fails half-way puts the old files back. A run that is killed is mended by the next one, which also
    reports the changes that the killed one did not."
  - A file that was there before and is taken over is kept in C(/var/lib/wsgi-fleet/tree/NAME.orig), and comes back when
    its path is no longer wanted.
  - The owned files are listed in C(/var/lib/wsgi-fleet/tree/NAME.json).
  - Links are never followed below O(root). A wanted path which is a link is replaced by a file.
  - A configuration that names its own directory by an absolute path reads live files during a test. Use relative ones.
version_added: 0.1.0
author: The wsgi.fleet maintainers
options:
  name:
    description: Whose files these are. One caller uses one name; two callers may share O(root) but no path.
    type: str
    required: true
  root:
    description: Absolute directory that all paths are relative to, made (C(0755)) when missing.
    type: str
    required: true
  files:
    description: The complete set of files of O(name), each with exactly one of C(template), C(content) and C(src).
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where the file goes, relative to O(root).
        type: str
        required: true
      template:
        description:
          - Jinja template on the controller, looked up as M(ansible.builtin.template) does.
          - V(ansible_managed) has a default here. V(tree_digest) becomes the RV(digest).
        type: str
      content:
        description: The text itself. C({{ tree_digest }}) in it (written raw) becomes the RV(digest).
        type: raw
      src:
        description: File on the controller, looked up as M(ansible.builtin.copy) does, copied as it is.
        type: str
      vars:
        description: Variables of this one template, added to those of the task.
        type: dict
        default: {}
      owner:
        description: Name or number of the user who owns the file.
        type: str
        default: root
      group:
        description: Name or number of the file's group.
        type: str
        default: root
      mode:
        description: Permissions, octal and quoted.
        type: raw
        default: "0644"
      secret:
        description: Never show the content, neither in a diff nor in an error.
        type: bool
        default: false
  directories:
    description:
      - Directories that must exist, with their owner and mode. Never removed while they are listed.
      - Directories that only lead to a file need not be listed; they are made, with C(0755).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The directory, relative to O(root); V(.) is O(root) itself.
        type: str
        required: true
      owner:
        description: Name or number of the user who owns the directory.
        type: str
        default: root
      group:
        description: Name or number of the directory's group.
        type: str
        default: root
      mode:
        description: Permissions, octal and quoted.
        type: raw
        default: "0755"
  tests:
    description:
      - Programs that must all succeed before anything is put in place, run one after the other.
      - They find the new state in a copy of O(root), whose path stands for C({root}) in C(argv) and C(chdir).
      - They may open as many files as the host lets them.
    type: list
    elements: dict
    default: []
    suboptions:
      argv:
        description: The program and its arguments.
        type: list
        elements: str
        required: true
      chdir:
        description: Directory to run it in, absolute.
        type: str
      user:
        description: User to run it as. Default is the user who runs the module.
        type: str
      file:
        description: Path among O(files) to blame when the program's output names none.
        type: str
      name:
        description: What to call the test in an error. Default is the program.
        type: str
      when_changed:
        description: Run the test only when one of these O(files) changes, or a run was killed. Default is every change.
        type: list
        elements: str
        default: []
  keep:
    description:
      - Directories, relative to O(root), in which files of an earlier run with the same O(name) stay as they are though
        O(files) does not have them any more.
    type: list
    elements: str
    default: []
  problems:
    description:
      - What is wrong with that which O(files) was worked out from. When there is something, this fails with it, one
        to a line, and does nothing.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds that each test may take.
    type: int
    default: 60
attributes:
  check_mode:
    description: Reports the same changes. Tests run too, except those whose program, user or directory is missing yet.
    support: full
  diff_mode:
    description: Shows every file that changes, except secret ones.
    support: full
  platform:
    description: Hosts with Python 3.9 or newer.
    platforms: linux
    support: full
"""

EXAMPLES = r"""
- name: Put the configuration in place
  wsgi.fleet.tree:
    name: nginx
    root: /etc/nginx
    files:
      - path: nginx.conf
        template: nginx.conf.j2
      - path: sites-enabled/shop.conf
        template: site.conf.j2
        vars:
          site: "{{ nginx_sites[0] }}"
      - path: tls/shop.key
        content: "{{ shop_key }}"
        mode: "0600"
        secret: true
    tests:
      - argv: [nginx, -t, -c, "{root}/nginx.conf"]
        file: nginx.conf
  register: __nginx_tree
"""

RETURN = r"""
changed_files:
  description: Files that were placed or corrected, relative to root.
  returned: success
  type: list
  elements: str
  sample: [sites-enabled/shop.conf]
removed_files:
  description: Files that were removed, relative to root (absolute when they were under an earlier root).
  returned: success
  type: list
  elements: str
  sample: [sites-enabled/old.conf]
digest:
  description: SHA-256 over path, owner, group, mode and content of all wanted files.
  returned: success
  type: str
  sample: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
unchecked:
  description: What check mode could not look at yet (users, groups and programs that do not exist).
  returned: success
  type: list
  elements: str
  sample: ["owner shop does not exist yet", "test nginx: program nginx does not exist"]
file:
  description: The file that a failed test blames.
  returned: when a test failed
  type: str
  sample: /etc/nginx/sites-enabled/shop.conf
test:
  description: The name of the failed test.
  returned: when a test failed
  type: str
  sample: nginx
rc:
  description: The exit code of the failed test.
  returned: when a test failed
  type: int
  sample: 1
"""

import resource
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.engine import apply
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.request import (
    ARGUMENTS,
    TreeError,
    build_request,
    request_problems,
    unpack,
)


def main() -> None:
    """Wire the engine to Ansible."""
    # The action plugin sends what it rendered as one parameter, which no output shows.
    arguments: dict[str, Any] = {**ARGUMENTS, "_contents": {"type": "str", "required": True, "no_log": True}}
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    # nginx -t opens the logs of all sites, which may be more files than a session begins with.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def label(temporary: str, target: str) -> None:
        if module.selinux_enabled():
            module.set_context_if_different(temporary, module.selinux_default_context(target), changed=False)

    contents = unpack(module.params.pop("_contents"))
    problems = request_problems(module.params)
    if problems:
        module.fail_json(msg="; ".join(problems))
    request = build_request(module.params, contents)
    try:
        result = apply(request, check=module.check_mode, diff=module._diff, label=label)
    except TreeError as error:
        module.fail_json(msg=str(error), **error.details)
    except OSError as error:  # names the file
        module.fail_json(msg=f"{error}. Run again when this is mended; nothing is lost.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
