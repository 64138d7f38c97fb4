from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

class AnsibleModule:
    params: dict[str, Any]
    argument_spec: dict[str, dict[str, Any]]
    check_mode: bool
    tmpdir: str
    def __init__(
        self,
        argument_spec: Mapping[str, Mapping[str, Any]],
        *,
        mutually_exclusive: Sequence[Sequence[str]] | None = ...,
        required_together: Sequence[Sequence[str]] | None = ...,
        required_one_of: Sequence[Sequence[str]] | None = ...,
        required_if: Sequence[Sequence[Any]] | None = ...,
        required_by: Mapping[str, str | Sequence[str]] | None = ...,
        supports_check_mode: bool = ...,
    ) -> None: ...
    def exit_json(self, **kwargs: Any) -> NoReturn: ...
    def fail_json(self, msg: str, **kwargs: Any) -> NoReturn: ...
    def warn(self, warning: str) -> None: ...
    def get_bin_path(self, arg: str, required: bool = ..., opt_dirs: Sequence[str] | None = ...) -> str: ...
    def run_command(
        self,
        args: str | Sequence[str],
        check_rc: bool = ...,
        *,
        data: str | bytes | None = ...,
        environ_update: Mapping[str, str] | None = ...,
    ) -> tuple[int, str, str]: ...
def missing_required_lib(library: str, reason: str | None = ..., url: str | None = ...) -> str: ...
