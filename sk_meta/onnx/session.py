"""A file in onnxruntime: loaded, and run within limits of time and memory."""

import os
from contextlib import suppress
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import onnxruntime

_EVERY = 0.25  # seconds between looks at the deadlines
_deadlines = {}  # of runs: (their options, when to stop them), by the options' id


def check_options(n_threads, time_limit):
    """Raise unless these are what `Session` takes."""
    if not isinstance(n_threads, Integral) or n_threads < 1:
        raise ValueError(f"n_threads must be an integer above 0, got {n_threads!r}.")
    if time_limit is None:
        return
    if not isinstance(time_limit, Real) or not time_limit > 0:
        raise ValueError(
            f"time_limit must be seconds above 0, or None; got {time_limit!r}."
        )


def content_of(file):
    """The bytes of a file, given as a path, bytes or an open file."""
    if isinstance(file, bytes | bytearray | memoryview):
        return bytes(file)
    if isinstance(file, str | os.PathLike):
        return Path(file).read_bytes()
    data = file.read() if hasattr(file, "read") else None
    if isinstance(data, str):
        raise TypeError("The file is open for text. Open it with open(path, 'rb').")
    if not isinstance(data, bytes):
        raise TypeError(
            f"Expected a path, bytes or an open file, got {type(file).__name__}. Of an "
            "onnx.ModelProto, pass SerializeToString()."
        )
    return data


@cache
def _limit_memory():
    """Make an allocator that sessions share, of half of the memory at most."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        memory = 2**32
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    info = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    settings = onnxruntime.OrtArenaCfg({"max_mem": memory // 2})
    with suppress(RuntimeError):  # the process has one already
        onnxruntime.create_and_register_allocator(info, settings)


@cache
def _watch(process):
    """Start the thread that stops runs at their deadlines; one for each process."""

    def stop_late_ones():
        while True:
            sleep(_EVERY)
            for options, deadline in list(_deadlines.values()):
                if monotonic() > deadline:
                    options.terminate = True

    Thread(target=stop_late_ones, daemon=True).start()


class Session:
    """An onnxruntime session on the CPU, silent.

    All sessions together take no more than half of the machine's memory.

    Parameters
    ----------
    data : bytes
    n_threads : int
    time_limit : float or None
        Seconds for one run.

    Raises
    ------
    ValueError
        If onnxruntime refuses the file.
    """

    def __init__(self, data, n_threads, time_limit):
        _limit_memory()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = int(n_threads)
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry("session.use_env_allocators", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                data,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=False,
            )
        except Exception as error:
            raise ValueError(f"onnxruntime cannot load it: {error!s:.300}") from error
        self.time_limit = time_limit
        self.outputs = [output.name for output in self._session.get_outputs()]

    def inputs(self):
        """The inputs by their names, those with a default included."""
        session = self._session
        every = (*session.get_inputs(), *session.get_overridable_initializers())
        return {given.name: given for given in every}

    def run(self, feed):
        """All outputs.

        Raises
        ------
        TimeoutError
            If it takes longer than `time_limit`.
        ValueError
            If an operator fails.
        """
        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        if self.time_limit is not None:  # a thread of its own would cost 0.3 ms
            _watch(os.getpid())
            _deadlines[id(options)] = options, monotonic() + self.time_limit
        try:
            return self._session.run(self.outputs, feed, options)
        except Exception as error:
            if options.terminate:
                raise TimeoutError(
                    f"The file did not come to an end within {self.time_limit} seconds."
                    " Pass fewer rows or steps, or a larger time_limit."
                ) from None
            raise ValueError(
                f"onnxruntime cannot run the file on these rows: {error!s:.300}"
            ) from error
        finally:
            _deadlines.pop(id(options), None)
