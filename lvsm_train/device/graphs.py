"""Parts of a training step as CUDA graphs: recorded once, launched by one call, since Python launches kernels slowly."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError

WARM_UP = 3  # runs before a recording, in which libraries choose kernels and blocks are compiled

Terms = dict[str, Tensor]
Work = Callable[..., Terms]


@dataclass(frozen=True)
class _Recording:
    """inputs, outputs: static tensors that a graph reads and writes. replay: launch the graph."""

    inputs: tuple[Tensor, ...]
    outputs: Terms
    replay: Callable[[], None]


class Recorded:
    """`work(key, *tensors)`, which accumulates gradients of a module and returns scalars by name, replayed as a CUDA graph.

    For equal key and shapes, work must launch the same kernels on the same memory: no copies from the host, no host sync, and
    parameters keep their storage. Each key and shape is recorded at its first call. Gradients set to None between calls count
    as 0; gradients that work leaves None are 0. On other devices work runs on copies of the tensors, without a graph.

    Raises UserError if a step cannot be recorded.
    """

    def __init__(self, module: nn.Module, work: Work) -> None:
        self.work = work
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        self.recordings: dict[Hashable, _Recording] = {}
        self.on_gpu = self.parameters[0].is_cuda
        self.pool = torch.cuda.graph_pool_handle() if self.on_gpu else None  # shared: graphs never run at the same time

    def __call__(self, key: Hashable, *tensors: Tensor) -> Terms:
        self._bind_grads()
        place = (key, *((tensor.shape, tensor.dtype) for tensor in tensors))
        recording = self.recordings.get(place)
        if recording is None:
            recording = self.recordings[place] = self._record(key, tensors)
        for mine, given in zip(recording.inputs, tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        recording.replay()
        return {name: value.clone() for name, value in recording.outputs.items()}  # the next replay overwrites

    def _bind_grads(self) -> None:
        """Make every parameter's gradient the tensor that graphs accumulate into, with its present value."""
        pairs = list(zip(self.parameters, self.grads, strict=True))
        if missing := [grad for parameter, grad in pairs if parameter.grad is None]:
            torch._foreach_zero_(missing)
        for parameter, grad in pairs:
            if parameter.grad is not None and parameter.grad is not grad:
                grad.copy_(parameter.grad)
            parameter.grad = grad

    def _record(self, key: Hashable, tensors: tuple[Tensor, ...]) -> _Recording:
        inputs = tuple(tensor.detach().clone() for tensor in tensors)
        if not self.on_gpu:
            outputs: Terms = {}
            return _Recording(inputs, outputs, lambda: outputs.update(self.work(key, *inputs)))
        before = [grad.clone() for grad in self.grads]
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.work(key, *inputs)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                outputs = self.work(key, *inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(
                f"a step cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}", "--compile blocks, or no"
            ) from None
        torch._foreach_copy_(self.grads, before)
        return _Recording(inputs, outputs, graph.replay)


class Settled:
    """`work()`, which reads and writes static memory and returns a tensor, replayed as a CUDA graph once that memory stays.

    memory: returns addresses that may change; where they are others than at the last call, or after `forget`, work runs as it
    is, WARM_UP times before the next recording. So it does always where work cannot be recorded; `says` tells why. record:
    False never to record, as on other devices.
    """

    def __init__(self, work: Callable[[], Tensor], memory: Callable[[], Hashable], record: bool) -> None:
        self.work, self.memory, self.record = work, memory, record
        self.says = ""
        self.forget()

    def forget(self) -> None:
        """Record anew: work has other memory."""
        self.place: Hashable = None
        self.seen = 0
        self.replay: Callable[[], Tensor] | None = None

    def __call__(self) -> Tensor:
        if not self.record:
            return self.work()
        if (place := self.memory()) != self.place:
            self.forget()
            self.place = place
        self.seen += 1
        if self.replay is None and self.seen > WARM_UP:
            self.replay = self._recorded()
        return self.replay() if self.replay else self.work()

    def _recorded(self) -> Callable[[], Tensor] | None:
        """Function that launches the recorded work, without having run it; None if it cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                made = self.work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.record = False
            self.says = f"the optimiser cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}"
            return None

        def replay() -> Tensor:
            graph.replay()
            return made.clone()  # the next replay overwrites

        return replay
