"""Structures of a .blend, found in its bytes by what it says about them itself (DNA1): for what Blender leaves unread."""

import re
import struct
import zlib

import numpy as np

MAX_BYTES, MOST_BLOCKS = 2**30, 10**6
WHOLE = {"short": "h", "int": "i", "char": "b"}
BROKEN = (struct.error, ValueError, IndexError, KeyError, TypeError, zlib.error, RecursionError)


def opened(path):
    """Structures of a .blend that is plain or packed by gzip, as all before 2.80 are. Raises OSError, one of BROKEN."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES)
    return OldFile(zlib.decompressobj(31).decompress(data, MAX_BYTES) if data[:2] == b"\x1f\x8b" else data)


class OldFile:
    """Blocks of a .blend (bytes).

    blocks: (code, number of their structure, first byte) of each. places: pointer -> (number, first byte, count).

    Raises one of BROKEN.
    """

    def __init__(self, data):
        order, wide = {"v": "<", "V": ">"}[chr(data[8])], data[7:8] == b"-"
        head = struct.Struct(order + "4si" + ("Q" if wide else "I") + "ii")
        self.data, self.order, self.pointer = data, order, "Q" if wide else "I"
        self.blocks, self.places, at = [], {}, 12
        while at + head.size <= len(data):
            code, size, pointer, number, count = head.unpack_from(data, at)
            if code == b"ENDB" or size < 0:
                break
            start = at + head.size
            self.blocks.append(
                (code.strip(b"\0"), number, start)
            )  # two letters stand at the end where the order is ">"
            self.places[pointer] = (number, start, count)
            at = start + size
            if len(self.blocks) > MOST_BLOCKS:
                raise ValueError(f"more than {MOST_BLOCKS} blocks")
        self._learn({code: start for code, _, start in self.blocks}[b"DNA1"], wide)

    def all_of(self, code):
        """Yield (number, start) of the data-blocks of two letters, as b"MA"."""
        return ((number, start) for found, number, start in self.blocks if found == code)

    def _learn(self, start, wide):
        """Read which fields the structures have. start: of the block that says so."""
        self.at = start + 4
        names, types = self._texts(b"NAME"), self._texts(b"TYPE")
        self._expect(b"TLEN")
        lengths = self._shorts(len(types))
        self.at += -(self.at - start) % 4
        self._expect(b"STRC")
        (count,) = self._unpack("i")
        self.structs, self.kinds, self.sizes, self.named = [], [], [], {}
        for _ in range(count):
            kind, fields = self._shorts(2)
            offset, found = 0, {}
            for _ in range(fields):
                of, name = self._shorts(2)
                key, is_pointer, number = _declared(names[name])
                found[key] = (offset, types[of], is_pointer, number)
                offset += number * ((8 if wide else 4) if is_pointer else lengths[of])
            self.structs.append(found)
            self.kinds.append(types[kind])
            self.sizes.append(lengths[kind])
            self.named[types[kind]] = found

    def read(self, number, start, field):
        """Values of a field of the structure at `start`: pointers, or whole numbers."""
        offset, form, count = self._field(number, field)
        return struct.unpack_from(f"{self.order}{count}{form}", self.data, start + offset)

    def _field(self, number, field):
        """(offset, letter of `struct`, number of values) of a field."""
        offset, kind, is_pointer, count = self.structs[number][field]
        return offset, self.pointer if is_pointer else WHOLE[kind], count

    def column(self, number, start, count, field):
        """Values (count,) of a field that has one, of an array of structures at `start`."""
        offset, form, _ = self._field(number, field)
        return np.ndarray((count,), np.dtype(self.order + form), self.data, start + offset, (self.sizes[number],))

    def text(self, number, start, field):
        """Text of a field; "" if there is no such field."""
        if field not in self.structs[number]:
            return ""
        offset, _, _, count = self.structs[number][field]
        return self._text(start + offset, count)

    def name(self, number, start):
        """Name of a data-block, without the two letters of its kind."""
        offset = self.structs[number]["id"][0] + self.named["ID"]["name"][0]
        return self._text(start + offset, self.named["ID"]["name"][3])[2:]

    def _text(self, at, size):
        return self.data[at : at + size].partition(b"\0")[0].decode("utf-8", "replace")

    def _texts(self, mark):
        self._expect(mark)
        (count,) = self._unpack("i")
        found = []
        for _ in range(count):
            end = self.data.index(b"\0", self.at)
            found.append(self.data[self.at : end].decode("latin-1"))
            self.at = end + 1
        return found

    def _expect(self, mark):
        self.at = self.data.index(mark, self.at, self.at + 8) + 4

    def _shorts(self, count):
        return self._unpack(f"{count}h")

    def _unpack(self, form):
        values = struct.unpack_from(self.order + form, self.data, self.at)
        self.at += struct.calcsize(self.order + form)
        return values


def _declared(name):
    """(name, is it a pointer, number of values) of a field as C declares it: `*mtex[18]`."""
    number = 1
    for length in re.findall(r"\[(\d+)\]", name):
        number *= int(length)
    return re.sub(r"\[.*|[*()]", "", name), name.startswith(("*", "(")), number
