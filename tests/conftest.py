"""One thread per test process: the tensors here are small, and workers share the cores.

`HYPOTHESIS_PROFILE=full` draws twenty times as many cases, other ones each time.
"""

import os
import signal

import torch
from hypothesis import settings

torch.set_num_threads(1)
# A job in the background of a shell ignores Ctrl-C, and so would the commands that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("quick", derandomize=True, deadline=None, database=None)
settings.register_profile("full", derandomize=False, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
