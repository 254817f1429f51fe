"""BatchNorm over the global batch, on any device: PyTorch's SyncBatchNorm needs GPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, get_world_size, is_available, is_initialized
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm with the mean and variance of all workers' samples; with one worker, or in eval mode, plain BatchNorm.

    All workers must call it equally often in training, since each call sums over the workers.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1, over the samples of all workers.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"an input of shape {tuple(input.shape)}: expected (N, C, ...)")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise an input (N, C, ...) per channel."""
        if not self.training or not is_available() or not is_initialized() or get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        dims = [dim for dim in range(input.ndim) if dim != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        size = x.new_tensor([x.numel() / x.shape[1]])
        sums = _over_workers(torch.cat([x.sum(dims), size]))
        count = float(sums[-1].detach())
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = _over_workers(centred.square().sum(dims)) / count
        self._update_statistics(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        normalised: Tensor = out.to(input.dtype)
        return normalised

    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


class _Sum(torch.autograd.Function):
    """Sum over all workers; the gradient is the sum of the workers' gradients."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        total = value.clone()
        all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total


def _over_workers(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return total


def convert_batchnorm(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm by a :class:`GlobalBatchNorm` with the same parameters and statistics."""
    if isinstance(model, _BatchNorm) and not isinstance(model, (GlobalBatchNorm, nn.SyncBatchNorm)):
        made = GlobalBatchNorm(model.num_features, model.eps, model.momentum, model.affine, model.track_running_stats)
        made.train(model.training)
        made._parameters, made._buffers = model._parameters, model._buffers
        return made
    for name, child in list(model._modules.items()):  # named_children would skip a shared child's second name
        if child is not None:
            setattr(model, name, convert_batchnorm(child))
    return model
