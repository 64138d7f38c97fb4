from ansible.plugins.action import ActionBase

class PluginLoader:
    def add_directory(self, directory: str) -> None: ...
    def get(self, name: str, *, class_only: bool = ...) -> type[ActionBase]: ...

action_loader: PluginLoader
