from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

class AnsibleAWSModule(AnsibleModule):
    def client(self, service: str, retry_decorator: Any = ..., *, config: Mapping[str, Any] = ...) -> Any: ...
