"""A process that times one contender, told what to do on its standard input.

    python tests/benchmarks/peer_worker.py higher|torchopt|loop|vmap|joint|separate|ours

One JSON object a line: {"do": name of a method, ...its arguments}; one a line comes
back, or {"error": ...}. `tests/benchmarks/engine.py` starts and asks these.
"""

import json
import os
import sys
import traceback
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from time import perf_counter, process_time

import numpy as np
import torch
from peer_networks import load_batches, make_network
from peer_steps import STEPS, loss_for
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function


class Contender:
    """What every side answers to; a side adds `check`, `time` and `memory`."""

    def versions(self, packages):
        """Versions of packages; None where one cannot be imported."""
        found = {}
        for package in packages:
            try:
                __import__(package)
                found[package] = version(package)
            except (ImportError, PackageNotFoundError, AttributeError):
                found[package] = None
        return found

    def setup(self, workload, path, threads, device):
        """Take up a workload and its meta-batches."""
        torch.set_num_threads(threads)
        self.workload, self.device = workload, device
        self.batches = load_batches(path)


class Peer(Contender):
    """A step written for another package, on tensors that were drawn beforehand."""

    def __init__(self, name):
        self.name = name

    def setup(self, workload, path, threads, device):
        """See `Contender.setup`."""
        super().setup(workload, path, threads, device)
        self.network = make_network(workload["network"]).train().to(device)
        self.tensors = [self._tensors(batch, torch.float32) for batch in self.batches]
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.step = self._step(self.network, optimizer)

    def _step(self, network, optimizer):
        loss_of = loss_for(self.tensors[0][1])
        return STEPS[self.name](network, loss_of, self.workload, optimizer)

    def check(self, save, dtype="float32"):
        """Loss of the first meta-batch; its gradient goes to the file `save`."""
        dtype = getattr(torch, dtype)
        network = make_network(self.workload["network"]).train()
        network = network.to(self.device, dtype)
        named = dict(network.named_parameters())
        step = self._step(network, torch.optim.SGD(named.values(), lr=0.0))
        loss = step(*self._tensors(self.batches[0], dtype))
        np.savez(save, **{name: value.grad.cpu() for name, value in named.items()})
        return {"loss": loss}

    def time(self, iterations, bfloat16=False):
        """Seconds for some meta-iterations."""
        precision = nullcontext()
        if bfloat16:
            precision = torch.autocast(self.device, torch.bfloat16)
        with precision, Stopwatch(self.device) as watch:
            self._run(iterations)
        return {**watch.seconds, "iterations": iterations}

    def _run(self, iterations):
        for batch in islice(cycle(self.tensors), iterations):
            self.step(*batch)

    def memory(self):
        """Bytes of a meta-step, at its peak and above the data."""
        self._run(1)
        return peak_bytes(lambda: marked(self._run, 1), self.device)

    def _tensors(self, batch, dtype):
        tensors = [torch.from_numpy(array).to(self.device) for array in batch]
        return tuple(t.to(dtype) if t.is_floating_point() else t for t in tensors)


class Stopwatch:
    """Processor and wall time of a block, in which a GPU has finished its work."""

    def __init__(self, device):
        self.device = device

    def start(self):
        """Start."""
        self.started = self._now()
        return self

    __enter__ = start

    def __exit__(self, *error):
        self.seconds = self.since_start()

    def since_start(self):
        """Seconds so far: {"cpu": ..., "wall": ...}."""
        cpu, wall = self._now()
        return {"cpu": cpu - self.started[0], "wall": wall - self.started[1]}

    def _now(self):
        if self.device != "cpu":
            torch.cuda.synchronize()
        return process_time(), perf_counter()


def marked(function, *args, **kwargs):
    """Call, and mark the time for `peak_bytes`."""
    with record_function("meta_step"):
        return function(*args, **kwargs)


def peak_bytes(function, device):
    """Largest number of bytes that torch held in the last marked call, above before.

    Counts every allocation and release that torch's profiler reports, on the device.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = profiled.profiler.kineto_results.events()
    start, length = max(
        (event.start_ns(), event.duration_ns())
        for event in events
        if event.name() == "meta_step"
    )
    times, changes = zip(
        *sorted(
            (event.start_ns(), event.nbytes())
            for event in events
            if event.name() == "[memory]"
            and (event.device_type() == DeviceType.CPU) == (device == "cpu")
        ),
        strict=True,
    )
    first, last = np.searchsorted(times, (start, start + length))
    return {"bytes": int(np.cumsum(changes[first:last]).max())}


def make_contender(name):
    """The side of that name."""
    if name != "ours":
        return Peer(name)
    from peer_ours import Ours  # sk_meta is not installed where the peers are

    return Ours()


def main():
    """Answer until the input ends."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contender = make_contender(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(contender, request.pop("do"))(**request) or {}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
