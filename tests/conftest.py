"""One thread per test process: the tensors here are small, and workers share the cores.

`HYPOTHESIS_PROFILE=full` draws twenty times as many cases, other ones each time.
"""

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("quick", derandomize=True, deadline=None, database=None)
settings.register_profile("full", derandomize=False, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
