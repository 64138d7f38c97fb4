from ansible.template import Templar

class BuiltModule:
    b_module_data: bytes

def modify_module(
    *,
    module_name: str,
    module_path: str,
    module_args: dict[str, object],
    templar: Templar,
    task_vars: dict[str, object],
    module_compression: str,
    environment: dict[str, str],
) -> BuiltModule: ...
