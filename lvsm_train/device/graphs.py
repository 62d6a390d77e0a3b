"""A training step as CUDA graphs: recorded once, launched by one call. For models so small that Python is slower than the GPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError

WARM_UP = 3  # rounds before a recording, in which libraries choose their kernels and blocks are compiled

Terms = dict[str, Tensor]
Work = Callable[..., Terms]


@dataclass(frozen=True)
class _Recording:
    """inputs: where a recording reads. told: where it leaves what the work answered."""

    inputs: tuple[Tensor, ...]
    told: Terms
    replay: Callable[[], None]


class Recorded:
    """recorded(key, *tensors) does what work(key, *tensors) does: adds to the gradients of parameters, and answers scalars.

    work must be the same kernels on the same memory each time that key and the shapes of tensors are the same: it copies nothing
    from the host, looks at no value, and its own parameters stay where they are. Each key and shape is recorded when it first
    comes. Gradients may be set to None between calls, and then count as 0; where work leaves some None, they are 0 here.
    On other devices work is called on copies of the tensors, without a recording.

    Raises UserError where a step cannot be recorded.
    """

    def __init__(self, module: nn.Module, work: Work) -> None:
        self.work = work
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.slopes = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.recordings: dict[Hashable, _Recording] = {}
        self.on_gpu = self.parameters[0].is_cuda
        self.pool = torch.cuda.graph_pool_handle() if self.on_gpu else None  # recordings never run at the same time

    def __call__(self, key: Hashable, *tensors: Tensor) -> Terms:
        self._bind()
        place = (key, *((tensor.shape, tensor.dtype) for tensor in tensors))
        recording = self.recordings.get(place)
        if recording is None:
            recording = self.recordings[place] = self._record(key, tensors)
        for mine, given in zip(recording.inputs, tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        recording.replay()
        return {name: value.clone() for name, value in recording.told.items()}  # the next replay writes over them

    def _bind(self) -> None:
        """Gradients have to lie where recordings add to them."""
        pairs = list(zip(self.parameters, self.slopes, strict=True))
        if missing := [slope for parameter, slope in pairs if parameter.grad is None]:
            torch._foreach_zero_(missing)
        for parameter, slope in pairs:
            if parameter.grad is not None and parameter.grad is not slope:
                slope.copy_(parameter.grad)
            parameter.grad = slope

    def _record(self, key: Hashable, tensors: tuple[Tensor, ...]) -> _Recording:
        inputs = tuple(tensor.detach().clone() for tensor in tensors)
        if not self.on_gpu:
            told: Terms = {}
            return _Recording(inputs, told, lambda: told.update(self.work(key, *inputs)))
        before = [slope.clone() for slope in self.slopes]
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.work(key, *inputs)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                told = self.work(key, *inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(
                f"a step cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}", "--compile blocks, or no"
            ) from None
        torch._foreach_copy_(self.slopes, before)
        return _Recording(inputs, told, graph.replay)
