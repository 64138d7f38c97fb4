"""The pure Python behind the modules of imagenet-ops. Only module.py knows Ansible."""
