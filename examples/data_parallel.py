"""Train with two workers on this host and one global batch of 64: the same result as one worker, also under torchrun."""

from functools import partial

import torch

import heptane as hp

torch.manual_seed(0)  # under torchrun each process draws the data: they must be the same
data = torch.randn(256, 8), torch.randint(0, 3, (256,))
model = torch.nn.Linear(8, 3)
tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=2))
sgd = partial(torch.optim.SGD, lr=0.1)
print(hp.fit(model, data, data, optimizer=sgd, epochs=2, batch_size=64, tricks=tricks).metrics)
