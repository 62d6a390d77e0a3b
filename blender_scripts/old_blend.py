"""Pictures that materials of Blender before 2.80 show. It reads such files but for what materials have to do with textures.

Written there: Material.mtex, pointers to MTex, which says what it colours and points to Tex. All else about them Blender reads.
"""

import re
import struct
import zlib

import bpy

WITH_NODES = (2, 80, 0)
MAX_BYTES, MOST_BLOCKS = 2**30, 10**6
COLOUR, BY_UV = 1, 16  # bits of MTex.mapto; of MTex.texco
BROKEN = (struct.error, ValueError, IndexError, KeyError, zlib.error, RecursionError)


def restore(path):
    """Give materials without nodes the pictures of their colour. Returns facts.

    mended: "old_materials" if any got one. missing_textures: number of other textures of colours, as clouds, which stay away.
    """
    if bpy.data.version >= WITH_NODES:
        return {}
    try:
        wanted = textures_of_materials(_unpacked(path))
    except BROKEN:
        return {}
    shown = missing = 0
    for material in (one for one in bpy.data.materials if one.library is None and not one.use_nodes):
        for texture, by_uv, layer in wanted.get(material.name, ()):
            found = bpy.data.textures.get(texture)
            if found is None or found.type in ("NONE", ""):
                continue
            if found.type == "IMAGE" and found.image:
                _show(material, found.image, by_uv, layer)
                shown += 1
                break
            missing += 1
    facts = {"mended": ["old_materials"]} if shown else {}
    return facts | ({"missing_textures": missing} if missing else {})


def _show(material, image, by_uv, layer):
    colour = material.diffuse_color[:]
    material.use_nodes = True
    tree = material.node_tree
    shader, picture = tree.nodes["Principled BSDF"], tree.nodes.new("ShaderNodeTexImage")
    shader.inputs["Base Color"].default_value = colour
    picture.image = image
    tree.links.new(picture.outputs["Color"], shader.inputs["Base Color"])
    if by_uv:
        places = tree.nodes.new("ShaderNodeUVMap")
        places.uv_map = layer
        tree.links.new(places.outputs["UV"], picture.inputs["Vector"])
    else:
        places = tree.nodes.new("ShaderNodeTexCoord")
        tree.links.new(places.outputs["Generated"], picture.inputs["Vector"])


def _unpacked(path):
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES)
    return zlib.decompressobj(31).decompress(data, MAX_BYTES) if data[:2] == b"\x1f\x8b" else data


def textures_of_materials(data):
    """Material's name -> [(name of a texture of its colour, True if places are UV, name of their layer)] of a .blend (bytes).

    Raises one of BROKEN.
    """
    order, wide = {"v": "<", "V": ">"}[chr(data[8])], data[7:8] == b"-"
    head = struct.Struct(order + "4si" + ("Q" if wide else "I") + "ii")
    blocks, at = [], 12
    while at + head.size <= len(data):
        code, size, pointer, number, _ = head.unpack_from(data, at)
        if code == b"ENDB" or size < 0:
            break
        blocks.append((code.rstrip(b"\0"), pointer, number, at + head.size))
        at += head.size + size
        if len(blocks) > MOST_BLOCKS:
            raise ValueError(f"more than {MOST_BLOCKS} blocks")
    starts = {code: start for code, _, _, start in blocks}
    layout = _Layout(data, starts[b"DNA1"], order, wide)
    places = {pointer: (number, start) for _, pointer, number, start in blocks}
    found = {}
    for code, _, number, start in blocks:
        if code == b"MA":
            slots = (places[slot] for slot in layout.read(number, start, "mtex") if slot in places)
            found[layout.name(number, start)] = list(_coloured(layout, places, slots))
    return found


def _coloured(layout, places, slots):
    """Yield what those slots of a material say that change its colour."""
    for number, start in slots:
        (mapto,), (texco,) = (layout.read(number, start, name) for name in ("mapto", "texco"))
        (texture,) = layout.read(number, start, "tex")
        if mapto & COLOUR and texture in places:
            layer = layout.text(number, start, "uvname")
            yield layout.name(*places[texture]), bool(texco & BY_UV), layer


class _Layout:
    """Where the fields of a .blend's structures are, as the file says itself (DNA1)."""

    def __init__(self, data, start, order, wide):
        self.data, self.order, self.pointer, self.at = data, order, "Q" if wide else "I", start + 4
        names, types = self._texts(b"NAME"), self._texts(b"TYPE")
        self._expect(b"TLEN")
        lengths = self._shorts(len(types))
        self.at += -(self.at - start) % 4
        self._expect(b"STRC")
        (count,) = self._unpack("i")
        self.structs, self.named = [], {}
        for _ in range(count):
            kind, fields = self._shorts(2)
            offset, found = 0, {}
            for _ in range(fields):
                of, name = self._shorts(2)
                key, is_pointer, number = _declared(names[name])
                found[key] = (offset, types[of], is_pointer, number)
                offset += number * ((8 if wide else 4) if is_pointer else lengths[of])
            self.structs.append(found)
            self.named[types[kind]] = found

    def read(self, number, start, field):
        """Values of a field of the structure at `start`: pointers, or shorts."""
        offset, kind, is_pointer, count = self.structs[number][field]
        form = self.pointer if is_pointer else {"short": "h", "int": "i", "char": "b"}[kind]
        return struct.unpack_from(f"{self.order}{count}{form}", self.data, start + offset)

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
