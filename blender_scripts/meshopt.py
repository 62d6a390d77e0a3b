"""Decodes EXT_meshopt_compression and KHR_meshopt_compression, which Blender's glTF importer does not know.

One compressed bufferView is vertices (ATTRIBUTES), triangles (TRIANGLES) or any indices (INDICES), and may have a filter.
"""

import numpy as np
from io_scene_gltf2.io.imp.gltf2_io_binary import BinaryData
from io_scene_gltf2.io.imp.gltf2_io_gltf import ImportError as Broken  # the importer reports its message, no traceback

EXTENSIONS = ("KHR_meshopt_compression", "EXT_meshopt_compression")
GROUP = 16  # elements whose bytes are packed alike
WIDTHS = {
    "v0": (0, 2, 4, 8),
    0: (0, 1, 2, 4),
    1: (1, 2, 4, 8),
}  # by the way of a column: bits of each byte, by the group's mode
ZEROS, VERBATIM = 2, 3  # two more ways


def teach_importer():
    """Make Blender's glTF importer decode bufferViews that are compressed. Call once, after bpy is imported."""
    plain = BinaryData.get_buffer_view

    def get_buffer_view(gltf, index):
        view = gltf.data.buffer_views[index]
        packed = next((view.extensions[name] for name in EXTENSIONS if name in (view.extensions or {})), None)
        if packed is None:
            return plain(gltf, index)
        decoded = gltf.__dict__.setdefault("meshopt_views", {})
        if index not in decoded:
            decoded[index] = memoryview(_decoded(gltf, packed))
        return decoded[index]

    BinaryData.get_buffer_view = staticmethod(get_buffer_view)


def _decoded(gltf, packed):
    if packed["buffer"] not in gltf.buffers:
        gltf.load_buffer(packed["buffer"])
    start = packed.get("byteOffset", 0)
    source = bytes(gltf.buffers[packed["buffer"]][start : start + packed["byteLength"]])
    try:
        return decode(source, packed["count"], packed["byteStride"], packed["mode"], packed.get("filter", "NONE"))
    except (IndexError, KeyError, ValueError, OverflowError) as error:
        raise Broken(f"a meshopt bufferView cannot be decoded: {error}") from error


def decode(source, count, stride, mode, filter_name="NONE"):
    """Decode one bufferView's bytes into `count` elements of `stride` bytes. Raises ValueError, IndexError or KeyError."""
    if not source or count < 0:
        raise ValueError("no data")
    if mode == "ATTRIBUTES":
        return FILTERS[filter_name](_vertices(source, count, stride)).tobytes()
    indices = {"TRIANGLES": _triangles, "INDICES": _indices}[mode](source, count)
    return (np.array(indices, np.int64) & 0xFFFFFFFF).astype({2: "<u2", 4: "<u4"}[stride]).tobytes()


# ---- vertices


def _vertices(source, count, stride):
    """(count, stride) bytes. The tail of the data holds what the first element is a difference to."""
    version = source[0] - 0xA0
    if version not in (0, 1) or stride % 4 or not 4 <= stride <= 256:
        raise ValueError(f"vertices of {stride} bytes with a first byte of {source[0]:#x}")
    data = np.frombuffer(source, np.uint8)
    tail = data[len(data) - stride - (stride // 4 if version else 0) :]
    channels = tail[stride:] if version else np.zeros(stride // 4, np.uint8)
    made = _differences(data, _groups(data, count, stride, version), count, stride)
    for number, channel in enumerate(channels.tolist()):
        part = slice(4 * number, 4 * number + 4)
        kind = "<u1 <u2 <u4".split()[channel & 3]
        first, delta = tail[part].view(kind), np.ascontiguousarray(made[:, part]).view(kind)
        if channel & 3 == 2:
            turn = np.uint32(channel >> 4)
            delta = delta >> turn | delta << (np.uint32(32) - turn) if turn else delta
            values = np.bitwise_xor.accumulate(delta, axis=0) ^ first
        else:
            values = np.cumsum(delta >> 1 ^ -(delta & 1), axis=0, dtype=delta.dtype) + first
        made[:, part] = np.ascontiguousarray(values).view(np.uint8)
    return made


def _block(stride):
    """Elements of a block: column by column, its bytes stand together."""
    return min(8192 // stride & ~(GROUP - 1), 256)


def _groups(data, count, stride, version):
    """Find where groups start: {bits: (starts, places)}. A place counts groups, column by column, block by block."""
    found = {bits: ([], []) for bits in (1, 2, 4, 8)}
    escapes = {bits: np.cumsum(np.append(0, ESCAPES[bits][data])).tolist() for bits in (1, 2, 4)}
    values, block, at, place = data.tolist(), _block(stride), 1, 0
    for start in range(0, count, block):
        here = min(block, count - start)
        groups, heads = -(-here // GROUP), at
        at += stride // 4 if version else 0
        for column in range(stride):
            way = values[heads + column // 4] >> 2 * (column % 4) & 3 if version else "v0"
            if way == VERBATIM:
                found[8][0].extend(range(at, at + here, GROUP))
                found[8][1].extend(range(place, place + groups))
                at += here
            elif way != ZEROS:
                widths, modes = WIDTHS[way], at
                at += -(-groups // 4)
                for group in range(groups):
                    bits = widths[values[modes + group // 4] >> 2 * (group % 4) & 3]
                    if bits:
                        found[bits][0].append(at)
                        found[bits][1].append(place + group)
                        end = at + 2 * bits
                        at = end + (escapes[bits][end] - escapes[bits][at] if bits < 8 else 0)
            place += block // GROUP
    return found


def _differences(data, groups, count, stride):
    """(count, stride) bytes as they are stored: differences to the element before."""
    blocks = -(-count // _block(stride))
    made = np.zeros((blocks * stride * _block(stride) // GROUP, GROUP), np.uint8)
    for bits, (starts, places) in groups.items():
        starts = np.array(starts, np.int64)[:, None]
        values = data.take(starts + np.arange(2 * bits), mode="clip")  # the last column may end within its group
        if bits < 8:
            values = SPREAD[bits][values].reshape(-1, GROUP)
            escaped = values == (1 << bits) - 1  # the byte itself follows
            after = starts + 2 * bits - 1 + np.cumsum(escaped, 1)
            values = np.where(escaped, data.take(after, mode="clip"), values)
        made[places] = values
    return made.reshape(blocks, stride, -1).transpose(0, 2, 1).reshape(-1, stride)[:count].copy()


def _spread(bits):
    """(256, 8 / bits): the numbers that a byte holds; the first is in the high bits, but for single bits in the lowest."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.arange(256, dtype=np.uint8)[:, None] >> (shifts if bits == 1 else shifts[::-1]) & ((1 << bits) - 1)


SPREAD = {bits: _spread(bits) for bits in (1, 2, 4)}
ESCAPES = {bits: (table == (1 << bits) - 1).sum(1) for bits, table in SPREAD.items()}


# ---- filters


def _octahedral(data):
    """Unit vectors from two coordinates on an octahedron; the third value is the one that stands for 1."""
    whole, x, y, one = _four(data)
    x, y = x / one, y / one
    z = 1 - abs(x) - abs(y)
    fold = np.maximum(-z, 0)
    x, y = x - np.where(x >= 0, fold, -fold), y - np.where(y >= 0, fold, -fold)
    scale = np.iinfo(whole.dtype).max / np.sqrt(x * x + y * y + z * z)
    whole[:, :3] = _rounded(np.stack([x, y, z], -1) * scale[:, None])
    return whole


def _quaternion(data):
    """Unit quaternions from three components, and in the fourth value which one is left out."""
    whole, x, y, z = _four(data)
    last = whole[:, 3].astype(np.int64)
    three = np.stack([x, y, z], -1) * (np.sqrt(0.5) / (last | 3))[:, None]
    four = np.concatenate([np.sqrt(np.maximum(0, 1 - (three**2).sum(-1, keepdims=True))), three], -1)
    places = (last[:, None] + np.arange(4)) % 4
    np.put_along_axis(whole, places, _rounded(four * 32767).astype(whole.dtype), 1)
    return whole


def _exponential(data):
    """Floats from a signed exponent (8 bits) and a signed mantissa (24 bits)."""
    whole = np.ascontiguousarray(data).view("<i4")
    return np.ldexp((whole << 8 >> 8).astype(np.float64), whole >> 24).astype("<f4")


def _color(data):
    """RGBA from luma, two differences, and alpha below a bit that tells how many bits are used."""
    signed, _, orange, green = _four(data)
    whole = signed.view(signed.dtype.str.replace("i", "u"))
    luma, alpha = whole[:, 0].astype(np.int64), whole[:, 3].astype(np.int64)
    most = 2 ** np.frexp(alpha)[1] - 1
    alpha &= most >> 1
    values = np.stack([luma + orange - green, luma + green, luma - orange - green, alpha << 1 | alpha & 1], -1)
    whole[:] = _rounded(values * (np.iinfo(whole.dtype).max / np.maximum(most, 1))[:, None])
    return whole


def _four(data):
    """Signed view (count, 4) of the elements, and its first three columns as floats."""
    whole = np.ascontiguousarray(data).view({4: "<i1", 8: "<i2"}[data.shape[1]])
    return whole, *whole[:, :3].astype(np.float64).T


def _rounded(values):
    """Nearest whole numbers, halves away from zero."""
    return np.trunc(np.nan_to_num(values) + np.copysign(0.5, values))


FILTERS = {"NONE": lambda data: data, "OCTAHEDRAL": _octahedral, "QUATERNION": _quaternion}
FILTERS |= {"EXPONENTIAL": _exponential, "COLOR": _color}


# ---- indices


class _Varints:
    """Whole numbers of 7 bits a byte, the lowest first, and differences to the last index."""

    def __init__(self, source, at):
        self.source, self.at, self.last = source, at, 0

    def byte(self):
        self.at += 1
        return self.source[self.at - 1]

    def number(self):
        value, shift = 0, 0
        while (byte := self.byte()) >= 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 28:
                raise ValueError("an index of more than 32 bits")
        return value | byte << shift

    def index(self):
        self.last += _signed(self.number())
        return self.last


def _signed(number):
    return number >> 1 ^ -(number & 1)


def _indices(source, count):
    if source[0] != 0xD1:
        raise ValueError(f"indices with a first byte of {source[0]:#x}")
    numbers, last, found = _Varints(source, 1), [0, 0], []
    for _ in range(count):
        number = numbers.number()
        last[number & 1] += _signed(number >> 1)
        found.append(last[number & 1])
    return found


def _triangles(source, count):
    """Three indices of each triangle: by an edge of a recent triangle and one more vertex, or by three vertices."""
    if source[0] != 0xE1 or count % 3 or len(source) < 17 + count // 3:
        raise ValueError(f"{count} indices of triangles with a first byte of {source[0]:#x} in {len(source)} bytes")
    common = source[-16:]
    numbers = _Varints(source, 1 + count // 3)
    edges, recent, fresh, found = [(0, 0)] * 16, [0] * 16, 0, []  # the newest last; 16 are remembered
    for code in source[1 : 1 + count // 3]:
        high, low = code >> 4, code & 15
        if high < 15:
            a, b = edges[-1 - high]
            if 0 < low < 13:
                c = recent[-1 - low]
            else:
                if low == 0:
                    c, fresh = fresh, fresh + 1
                elif low == 15:
                    c = numbers.index()
                else:
                    numbers.last += 1 if low == 14 else -1
                    c = numbers.last
                recent = [*recent[-15:], c]
            edges = [*edges[-14:], (c, b), (a, c)]
        else:
            pair = common[low] if low < 14 else numbers.byte()
            if low >= 14 and pair == 0:
                fresh = 0
            corners, new = [], []
            for place in (0 if low < 15 else 15, pair >> 4, pair & 15):
                if place == 0:
                    corners.append(fresh)
                    fresh += 1
                elif place == 15 and low >= 14:
                    corners.append(numbers.index())
                else:
                    corners.append(recent[-place])
                    continue
                new.append(corners[-1])
            a, b, c = corners
            recent = [*recent, *new][-16:]
            edges = [*edges[-13:], (b, a), (c, b), (a, c)]
        found += (a, b, c)
    return found
