"""What the process imports that trainings are forked from: all they need, so that they need not, each for itself."""

import datasets  # noqa: F401
import forked  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch._dynamo  # by the first optimizer: two seconds
import torch.distributed.checkpoint.state_dict  # noqa: F401
import torchmetrics  # noqa: F401

import accel_restore.session  # noqa: F401
