"""Slow imports, made once by the process from which trainings are forked.

It also imports `forked`, whose functions start the trainings. The tests' own processes do not import this module.
"""

import datasets
import forked
import matplotlib.backends.backend_agg
import matplotlib.figure
import torch._dynamo
import torch.distributed.checkpoint.state_dict
import torchmetrics
