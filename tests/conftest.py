"""Settings of the whole test suite."""

import torch

torch.manual_seed(0)
