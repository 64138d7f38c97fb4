"""The pure Python behind the modules of imagenet-ops. Only core/module.py knows Ansible."""

import os

# NumPy's OpenBLAS starts a thread for each processor when it is imported, and they spin for a while. Nothing here
# multiplies matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
