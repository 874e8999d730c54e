"""Writes the fixtures of this folder with NumPy and the `safetensors` package: python make.py (deterministic)."""

import ml_dtypes
import numpy as np
from numpy.lib import format as npy
from safetensors.numpy import save_file

VALUES = [0, 1, 2, 3, 100, 7]


def grid(dtype):
    if np.dtype(dtype) == bool:
        return np.array([[0, 1, 1], [1, 0, 1]], dtype)
    return np.array(VALUES, dtype).reshape(2, 3)


for dtype in ["f2", "f4", "f8", "i1", "u1", "i4", "u4", "i8", "b1"]:
    np.save(f"{dtype}.npy", grid("<" + dtype))
for dtype in ["f2", "f4", "f8", "i4", "u4", "i8"]:
    np.save(f"{dtype}_big.npy", grid(">" + dtype))
np.save("fortran.npy", np.asfortranarray(np.arange(24, dtype="<i4").reshape(2, 3, 4)))
np.save("fortran_big.npy", np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)))
np.save("scalar.npy", np.float32(2.5))
np.save("empty.npy", np.zeros((0, 3), "<f4"))
np.save("vector.npy", np.array([-1.5, np.inf, np.nan, -0.0], "<f8"))
np.save("bf16.npy", np.array([1, 2], ml_dtypes.bfloat16))
np.save("complex.npy", np.array([1j]))
np.save("object.npy", np.array([None]))
np.save("structured.npy", np.array([(1, 2.0)], [("a", "<i4"), ("b", "<f4")]))
for version in [(2, 0), (3, 0)]:
    with open(f"version{version[0]}.npy", "wb") as f:
        npy.write_array(f, grid("<f4"), version=version)
arrays = {"weight": grid("<f4"), "bias": np.arange(3, dtype="<i8"), "scalar": np.array(True)}
np.savez("stored.npz", **arrays)
np.savez_compressed("compressed.npz", **arrays, zeros=np.zeros(4000, "<f4"))
np.savez("positional.npz", np.arange(2, dtype="u1"))

names = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": ml_dtypes.bfloat16, "I64": "i8", "I32": "i4", "U32": "u4",
    "I8": "i1", "U8": "u1", "BOOL": "b1",
}
save_file({k: grid(v) for k, v in names.items()}, "all.safetensors", metadata={"format": "np", "name": "Müller\n"})
save_file({"scalar": np.array(4.0, "f4"), "empty": np.zeros((2, 0), "f2")}, "small.safetensors")
save_file({"loadable": np.array([1.0], "f4"), "wide": np.array([1, 2], "u8"), "fp8": np.array([1.0], ml_dtypes.float8_e4m3fn)}, "foreign.safetensors")
