"""Ansible's default output without what says nothing: tasks that are skipped, and argument checks that pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
name: short
type: stdout
short_description: Ansible's default output, shorter
description:
  - Shows no task that every host skips, and no argument validation that passes; of one that fails, the reason alone.
  - Unlike the default output with O(display_skipped_hosts=false), a task that may take long is named when it starts.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
options:
  display_skipped_hosts:
    description: Show skipped tasks and argument validation, too.
    type: bool
    default: false
    env:
      - name: ANSIBLE_DISPLAY_SKIPPED_HOSTS
    ini:
      - key: display_skipped_hosts
        section: defaults
"""

VALIDATION = "ansible.builtin.validate_argument_spec"
# The modules that run for minutes or hours, and show their progress.
LONG_MODULES = {path.stem for path in (Path(__file__).resolve().parent.parent / "action").glob("*.py")}


class CallbackModule(Default):
    """Prints what Ansible's own does, but for the tasks that say nothing."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "short"
    _is_named = False

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Name a task that is sure to run or may take long; others are named with their first result."""
        self._is_named = False
        super().v2_playbook_on_task_start(task, is_conditional)
        is_long = task.action in LONG_MODULES or bool(task.until)
        is_certain = not task.when and task.loop is None and task.action != VALIDATION
        if (is_long or is_certain) and not self._is_named:
            self._print_task_banner(task)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Print a result, unless it is that of an argument validation."""
        if result.task.action != VALIDATION or self.get_option("display_skipped_hosts"):
            super().v2_runner_on_ok(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Print a failure; that of a validation without the options that passed."""
        if result.task.action == VALIDATION:
            result.result.pop("argument_spec_data", None)
        super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Print that a host skips a task only if the task is named already."""
        if self._is_named and not self.get_option("display_skipped_hosts"):
            self._display.display(f"skipping: [{result.host.get_name()}]", color=constants.COLOR_SKIP)
        else:
            super().v2_runner_on_skipped(result)

    def _print_task_banner(self, task: Any) -> None:
        self._is_named = True
        super()._print_task_banner(task)
