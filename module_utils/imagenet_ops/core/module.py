"""The only file here that knows Ansible: turns a piece of pure work into a module's answer."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from typing import Any, Callable, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.errors import OpsError


def run(module: AnsibleModule, work: Callable[[], Mapping[str, Any]]) -> NoReturn:
    """Call ``work`` and leave: with its result, or with the text of the OpsError that it raised.

    ``work`` returns the module's result and must say ``changed`` in it. Any other exception is a fault of ours: the
    answer says so and what the module was working on, and Ansible adds the traceback where it is set to.
    """
    try:
        result = work()
    except OpsError as error:
        module.fail_json(msg=str(error))
    except Exception as error:  # noqa: BLE001  a fault of ours, whatever it is, and here is the one place that says so
        module.fail_json(msg=str(_fault(module, error)), exception=traceback.format_exc())
    module.exit_json(**result)


def _fault(module: AnsibleModule, error: Exception) -> OpsError:
    """Return what to say about an ``error`` that nobody foresaw."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(last.filename)}, line {last.lineno}"
    paths = [
        f"{name} {module.params[name]}"
        for name, option in sorted(module.argument_spec.items())
        if option.get("type") == "path" and module.params.get(name)
    ]
    return OpsError(
        "Fault in imagenet-ops",
        f"{type(error).__name__}: {error} ({place})" + (f", with {', '.join(paths)}" if paths else ""),
        "Completed work is kept. Report it with this message, and what a run with ANSIBLE_DISPLAY_TRACEBACK=error adds",
    )
