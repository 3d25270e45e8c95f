"""Settings for every test: offline, two threads at most, no colours."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", NO_COLOR="1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
