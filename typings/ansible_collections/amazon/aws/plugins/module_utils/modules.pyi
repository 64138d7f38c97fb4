from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

class AnsibleAWSModule(AnsibleModule):
    @property
    def region(self) -> str: ...
    def client(
        self, service: str, retry_decorator: Any = ..., *, config: Mapping[str, Any] = ..., region: str = ...
    ) -> Any: ...
