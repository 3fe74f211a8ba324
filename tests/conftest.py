"""Settings for a busy machine: one thread for tiny models, no deadlines."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch; children have it
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
