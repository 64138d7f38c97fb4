from collections.abc import Mapping
from typing import Any

class Display:
    def display(self, msg: str, color: str | None = ...) -> None: ...
    def vvv(self, msg: str) -> None: ...

class Templar:
    def template(self, variable: Any) -> Any: ...

class Task:
    action: str
    args: dict[str, Any]
    async_val: int
    check_mode: bool
    no_log: bool

class ActionBase:
    _display: Display
    _task: Task
    _templar: Templar
    def run(self, tmp: str | None = ..., task_vars: dict[str, Any] | None = ...) -> dict[str, Any]: ...
    def _execute_module(
        self,
        module_name: str | None = ...,
        module_args: Mapping[str, Any] | None = ...,
        *,
        task_vars: Mapping[str, Any] | None = ...,
        wrap_async: bool = ...,
    ) -> dict[str, Any]: ...
    def _low_level_execute_command(self, cmd: str) -> dict[str, Any]: ...
    def _make_tmp_path(self) -> str: ...
    def _remove_tmp_path(self, tmp_path: str, force: bool = ...) -> None: ...
    def _remote_expand_user(self, path: str) -> str: ...
