"""The only file here that knows Ansible: turns a piece of pure work into a module's answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.errors import OpsError


def run(module: AnsibleModule, work: Callable[[], Mapping[str, Any]]) -> NoReturn:
    """Call ``work`` and leave: with its result, or with the text of the OpsError that it raised.

    ``work`` returns the module's result and must say ``changed`` in it. Any other exception is a fault of ours, and
    Ansible shows it with its traceback.
    """
    try:
        result = work()
    except OpsError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)
