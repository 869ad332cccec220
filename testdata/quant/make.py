"""Makes vectors.bin and vectors.json: number formats as the gguf and mlx packages see them.

    pip install gguf==0.19.0 mlx==0.32.4 mlx-cpu==0.32.4 numpy==2.4.6
    python3 make.py

vectors.json: a list of {format, kind, <array>: [offset_bytes, length_bytes], ...} into vectors.bin.
kind "decode": bytes -> values (f32). kind "encode": input (f32) -> bytes.
kind "affine": input (f32) -> packed, scales, biases by mlx.core.quantize; values = q * scale + bias in f32 by
numpy; mlx = mlx.core.dequantize, which computes in the type of the scales.
"""

import json
import pathlib

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGML_QUANT_SIZES, quants

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(20)
DATA = bytearray()
INDEX = []

# Byte offsets of the f16 scales in a block.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}
# Formats which the gguf package can also quantise.
QUANTISES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"]


def put(format, kind, **arrays):
    entry = {"format": format, "kind": kind}
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        entry[name] = [len(DATA), len(raw)]
        DATA.extend(raw)
    INDEX.append(entry)


def normals(n):
    """Blocks of normals of very different sizes; one block of zeros, one constant."""
    x = RNG.standard_normal((n // 32, 32)) * np.exp2(RNG.integers(-9, 9, (n // 32, 1)))
    x[3] = 0.0
    x[5] = 0.25
    return x.astype(np.float32).reshape(1, n)


def gguf_random(name):
    values, size = GGML_QUANT_SIZES[T[name]]
    count = 6 if values == 256 else 24
    blocks = RNG.integers(0, 256, (count, size), dtype=np.uint8)
    for offset in SCALES[name]:
        d = (RNG.standard_normal(count) * np.exp2(RNG.integers(-10, 6, count))).astype(np.float16)
        d[0] = 0.0
        d[1] = np.float16(3e-7)  # subnormal
        blocks[:, offset:offset + 2] = d.view(np.uint8).reshape(count, 2)
    if name == "MXFP4":
        blocks[:, 0] = np.r_[0, 1, 2, 3, 250, RNG.integers(110, 135, count - 5)]
    put(name, "decode", bytes=blocks, values=quants.dequantize(blocks.reshape(1, -1), T[name]))


def gguf_encoded(name):
    x = normals(1024)
    raw = quants.quantize(x, T[name])
    put(name, "encode", input=x, bytes=raw)
    put(name, "decode", bytes=raw, values=quants.dequantize(raw, T[name]).astype(np.float32))


def affine(bits, group, scale):
    dtype = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}[scale]
    w = mx.array(normals(512).reshape(2, 256) + np.float32(0.5)).astype(dtype)
    packed, scales, biases = mx.quantize(w, group_size=group, bits=bits)
    mlx = mx.dequantize(packed, scales, biases, group_size=group, bits=bits)
    f32 = lambda a: np.array(a.astype(mx.float32))
    raw = lambda a: np.array(a if scale == "F32" else a.view(mx.uint16))
    stream = np.unpackbits(np.array(packed).view(np.uint8), bitorder="little").reshape(-1, bits)
    q = (stream << np.arange(bits, dtype=np.uint8)).sum(axis=-1).astype(np.float32)
    s, b = (np.repeat(f32(a).ravel(), group) for a in (scales, biases))
    format = {"bits": bits, "group": group, "scale": scale}
    put(format, "affine", input=f32(w), packed=np.array(packed), scales=raw(scales),
        biases=raw(biases), values=q * s + b, mlx=f32(mlx))


for name in SCALES:
    gguf_random(name)
for name in QUANTISES:
    gguf_encoded(name)
for bits in [2, 3, 4, 5, 6, 8]:
    for group in [32, 64, 128]:
        affine(bits, group, "BF16")
affine(4, 64, "F16")
affine(4, 64, "F32")
affine(3, 64, "F16")
affine(8, 32, "F32")

(HERE / "vectors.bin").write_bytes(DATA)
(HERE / "vectors.json").write_text("[\n" + ",\n".join(json.dumps(e) for e in INDEX) + "\n]\n")
