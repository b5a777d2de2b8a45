"""Modules that the ranks of a test have in memory before they start: imported once, then forked.

A launched rank imports for twelve seconds and works for one; a forked one only works.
"""

import importlib
import logging
import os
import sys
import types
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
warnings.filterwarnings("ignore")


class _Unused:
    """Stands for an optimizer that nothing here trains with, and whose import compiles."""


for _name in ("muon_optimizer", "original_muon"):
    _module = types.ModuleType(f"deepspeed.runtime.zero.muon.{_name}")
    for _attribute in ("MuonWithAuxAdam", "muon_update", "adam_update"):
        setattr(_module, _attribute, _Unused)
    sys.modules[_module.__name__] = _module

for _name in ("deepspeed", "stages.sft.train", "stages.reward.train"):
    importlib.import_module(_name)
importlib.import_module("torch").set_num_threads(1)
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
