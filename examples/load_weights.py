"""Load weights into a model with another head, and print what matched."""

import tempfile

import torch

import heptane as hp

donor = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1000))
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
with tempfile.NamedTemporaryFile(suffix=".pth") as file:
    torch.save(donor.state_dict(), file.name)
    print(hp.load_weights(model, file.name))
assert torch.equal(model[0].weight, donor[0].weight)
