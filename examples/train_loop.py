"""The loop as a generator: logging and stopping are code in your own ``for`` loop."""

from functools import partial

import torch

import heptane as hp

data = torch.randn(512, 8), torch.randint(0, 3, (512,))
model = torch.nn.Linear(8, 3)
tricks = hp.Tricks(cyclical=hp.Cyclical(), label_smoothing=hp.LabelSmoothing(eps=0.1))
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
for step in hp.train(model, data, optimizer=sgd, epochs=3, batch_size=64, tricks=tricks):
    if step.ends_epoch:
        print(step.epoch, step.run.meter.read())
        step.run.meter.reset()
