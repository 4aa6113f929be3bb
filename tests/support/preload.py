"""Imported once, by the process that trainings are forked from (`forked`): what they import late, which takes seconds.

And `forked` itself, whose functions they are started with. The tests' own processes do not import this.
"""

import datasets
import forked
import matplotlib.backends.backend_agg
import matplotlib.figure
import torch._dynamo
import torch.distributed.checkpoint.state_dict
import torchmetrics
