"""Settings for every test: offline, one compute thread, no colours."""

import os

os.environ.update(
    STENO_CACHE="off", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", NO_COLOR="1"
)
# More threads than free cores wait for each other at every small operation.
os.environ.setdefault("OMP_NUM_THREADS", "1")
