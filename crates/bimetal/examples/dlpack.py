"""Sends a PyTorch tensor through bimetal and back 10,000 times: same pointer, right order, no leak.

    cargo build --release -p bimetal --example dlpack
    python3 crates/bimetal/examples/dlpack.py target/release/examples/libdlpack.so
"""

import ctypes
import sys

import torch

lib = ctypes.CDLL(sys.argv[1])
lib.bimetal_double.restype = ctypes.c_void_p
lib.bimetal_double.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
lib.bimetal_reserved.restype = ctypes.c_uint64
api = ctypes.pythonapi
api.PyCapsule_GetPointer.restype = ctypes.c_void_p
api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
api.PyCapsule_New.restype = ctypes.py_object
api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
USED = b"used_dltensor"
NAME = b"dltensor"


def double(x):
    capsule = torch.utils.dlpack.to_dlpack(x)
    array = api.PyCapsule_GetPointer(capsule, NAME)
    api.PyCapsule_SetName(capsule, USED)
    result = lib.bimetal_double(array, torch.cuda.current_stream().cuda_stream)
    assert result, "bimetal failed"
    return torch.utils.dlpack.from_dlpack(api.PyCapsule_New(result, NAME, None))


def main():
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    side = torch.cuda.Stream()
    free = None
    for i in range(rounds):
        with torch.cuda.stream(side if i % 2 else torch.cuda.default_stream()):
            x = torch.full((100_000 + 4 * (i % 7),), 1.0, device="cuda")
            x *= 3.0
            y = double(x)
            assert y.data_ptr() == x.data_ptr(), "the pointer changed"
            total = (y - 6.0).abs().max()
        if i % 100 == 0:
            assert total.item() == 0.0, f"round {i}: wrong order or result"
        if i == 500:
            torch.cuda.synchronize()
            free = torch.cuda.mem_get_info()[0]
            held = lib.bimetal_reserved()
    torch.cuda.synchronize()
    after = torch.cuda.mem_get_info()[0]
    assert free is None or free - after <= 32 << 20, f"{free - after} bytes leaked"
    assert free is None or lib.bimetal_reserved() <= held, "our pools grew"
    print(f"{rounds} round trips, pointer unchanged, every hundredth result checked, no leak")


main()
