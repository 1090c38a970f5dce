"""One thread a test process, as a study's jobs have: sums in another order round differently."""

import torch

torch.set_num_threads(1)
