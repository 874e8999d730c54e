"""Times peer libraries for `bimetal bench`: one JSON request a line on stdin, one JSON answer a line on stdout.

Inputs are raw files x0, x1, ... in the folder named by the first argument; outputs go there as <peer>-y0, ....
"""

import itertools
import json
import os
import shutil
import signal
import sys
import time

FOLDER = sys.argv[1]
# Whatever a library prints goes to stderr: stdout carries answers only.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
# Ctrl-C is for the parent; this process ends when its stdin does.
signal.signal(signal.SIGINT, signal.SIG_IGN)

MOST_CALLS = 100_000


class Torch:
    def __init__(self, threads):
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        self.version = torch.__version__
        self.scope = {"torch": torch, "F": torch.nn.functional}
        names = dict(f32="float32", f16="float16", bf16="bfloat16", f64="float64", i8="int8", u8="uint8",
                     i32="int32", u32="uint32", i64="int64", bool="bool")
        self.dtypes = {ours: getattr(torch, theirs) for ours, theirs in names.items() if hasattr(torch, theirs)}
        self.cuda = torch.cuda.is_available()

    def read(self, path, spec, device):
        size = os.path.getsize(path)
        dtype = self.dtypes[spec["dtype"]]
        if size == 0:
            return self.torch.empty(spec["shape"], dtype=dtype, device=device)
        raw = self.torch.from_file(path, size=size, dtype=self.torch.uint8)
        # The copy has memory of its own, aligned as the library's allocator aligns.
        return raw.clone().view(dtype).reshape(spec["shape"]).to(device)

    def empty(self, spec, device):
        return self.torch.zeros(spec["shape"], dtype=self.dtypes[spec["dtype"]], device=device)

    def write(self, value, path, spec):
        count = 1
        for extent in spec["shape"]:
            count *= extent
        if not self.torch.is_tensor(value):
            raise TypeError(f"the result is a {type(value).__name__}, not a tensor")
        if value.numel() != count:
            raise ValueError(f"the result has shape {tuple(value.shape)}, expected {spec['shape']}")
        value = value.detach().to("cpu", self.dtypes[spec["dtype"]]).contiguous().reshape(-1)
        raw = value.view(self.torch.uint8)
        # A new file, because a longer one would keep its end.
        open(path, "wb").close()
        if raw.numel() == 0:
            return
        self.torch.from_file(path, shared=True, size=raw.numel(), dtype=self.torch.uint8).copy_(raw)

    def wait(self, device):
        if device != "cpu":
            self.torch.cuda.synchronize(device)

    def clear(self):
        if self.cuda:
            self.torch.cuda.empty_cache()


class Numpy:
    def __init__(self, threads):
        import numpy

        self.np = numpy
        self.version = numpy.__version__
        self.scope = {"np": numpy}
        self.cuda = False
        names = dict(f32="float32", f16="float16", f64="float64", i8="int8", u8="uint8", i32="int32", u32="uint32",
                     i64="int64", bool="bool")
        self.dtypes = {ours: numpy.dtype(theirs) for ours, theirs in names.items()}

    def read(self, path, spec, device):
        return self.np.fromfile(path, dtype=self.dtypes[spec["dtype"]]).reshape(spec["shape"])

    def empty(self, spec, device):
        return self.np.zeros(spec["shape"], dtype=self.dtypes[spec["dtype"]])

    def write(self, value, path, spec):
        value = self.np.asarray(value)
        if value.size != self.np.prod(spec["shape"], dtype=int):
            raise ValueError(f"the result has shape {value.shape}, expected {spec['shape']}")
        self.np.ascontiguousarray(value, dtype=self.dtypes[spec["dtype"]]).tofile(path)

    def wait(self, device):
        pass

    def clear(self):
        pass


class Job:
    """One expression with its buffers."""

    def __init__(self, library, request):
        self.library = library
        self.device = request["device"]
        self.outputs = request["outputs"]
        inputs = request["inputs"]
        names = [f"x{i}" for i in range(len(inputs))] + [f"y{i}" for i in range(len(self.outputs))]
        scope = {"islice": itertools.islice, **library.scope}
        # What is ready before the clock starts, as `s`.
        exec(compile(f"def setup({', '.join(names)}):\n return ({request['setup']})\n", "setup", "exec"), scope)
        self.setup = scope["setup"]

        def buffers():
            xs = [library.read(os.path.join(FOLDER, f"x{i}"), spec, self.device) for i, spec in enumerate(inputs)]
            ys = [library.empty(spec, self.device) for spec in self.outputs]
            return (*xs, *ys, self.setup(*xs, *ys))

        self.sets = [buffers() for _ in range(request["sets"])]
        self.turns = itertools.cycle(self.sets)
        source = (
            f"def many(turns, n):\n for {', '.join(names)}, s in islice(turns, n):\n  {request['expression']}\n"
            f"def once({', '.join(names)}, s):\n return ({request['expression']})\n"
        )
        exec(compile(source, "expression", "exec"), scope)
        self.many, self.once = scope["many"], scope["once"]
        for buffers in self.sets:
            self.once(*buffers)
        self.calls = 1
        while True:
            took = self.measure() * self.calls
            if took >= request["shortest_s"] or self.calls >= MOST_CALLS:
                break
            wanted = int(self.calls * 1.2 * request["shortest_s"] / max(took, 1e-9))
            self.calls = min(max(self.calls + 1, min(wanted, self.calls * 10)), MOST_CALLS)

    def measure(self):
        """Mean time of the calls of one sample, in seconds."""
        self.library.wait(self.device)
        start = time.perf_counter()
        self.many(self.turns, self.calls)
        self.library.wait(self.device)
        return (time.perf_counter() - start) / self.calls

    def sample(self, seconds, least):
        # The parent had the caches and the threads meanwhile.
        end = time.perf_counter() + min(0.01, seconds)
        self.measure()
        while time.perf_counter() < end:
            self.measure()
        samples = []
        end = time.perf_counter() + seconds
        while len(samples) < least or time.perf_counter() < end:
            samples.append(self.measure())
        return samples

    def finish(self, peer):
        """Writes the outputs: what the expression returns, or else what it wrote into y0, y1, ...."""
        *buffers, _ = next(self.turns)
        result = self.once(*buffers, self.setup(*buffers))
        self.library.wait(self.device)
        if result is None:
            result = ()
        elif not isinstance(result, (tuple, list)):
            result = (result,)
        ys = buffers[len(buffers) - len(self.outputs):]
        for i, spec in enumerate(self.outputs):
            value = result[i] if i < len(result) and result[i] is not None else ys[i]
            self.library.write(value, os.path.join(FOLDER, f"{peer}-y{i}"), spec)


class Server:
    def __init__(self):
        self.libraries = {}
        self.jobs = {}

    def start(self, request):
        answer = {}
        for name in request["peers"]:
            try:
                library = {"torch": Torch, "numpy": Numpy}[name](request["threads"])
                self.libraries[name] = library
                answer[name] = {"version": library.version, "cuda": library.cuda}
            except Exception as error:
                answer[name] = {"error": f"{type(error).__name__}: {error}"}
        return {"peers": answer, "python": sys.version.split()[0]}

    def load(self, request):
        # Free the last buffers first.
        self.jobs.pop(request["peer"], None)
        self.jobs[request["peer"]] = Job(self.libraries[request["peer"]], request)
        return {}

    def sample(self, request):
        return {"samples": self.jobs[request["peer"]].sample(request["seconds"], request["least"])}

    def finish(self, request):
        job = self.jobs.pop(request["peer"])
        job.finish(request["peer"])
        library = job.library
        del job
        library.clear()
        return {}


def main():
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "end":
            break
        try:
            answer = getattr(server, request["do"])(request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        print(json.dumps(answer), file=ANSWERS, flush=True)
    # The parent removes the folder too, unless it was killed.
    shutil.rmtree(FOLDER, ignore_errors=True)


main()
