"""`python -m trainer {sft,...}`."""

import sys

from trainer.config import SftConfig
from trainer.config_file import load_config
from trainer.sft import train_base

print(train_base(load_config(sys.argv[2], SftConfig, sys.argv[3:])))
