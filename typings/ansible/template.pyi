from ansible.parsing.dataloader import DataLoader

class Templar:
    def __init__(self, loader: DataLoader) -> None: ...
