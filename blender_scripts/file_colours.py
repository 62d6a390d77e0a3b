"""Reads what Blender's importers leave behind of PLY and STL files: colours, and places in pictures. Nothing else of the file.

Colours are sRGB in [0, 1], float32, as writers of both formats mean what a screen shows.
"""

import os
import re
import struct

import numpy as np

HEADER_BYTES = 2**16
NAMES = [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")]
NAMES += [("ambient_red", "ambient_green", "ambient_blue")]
PLACES = [("s", "t"), ("u", "v"), ("texture_u", "texture_v")]  # of points in a picture, from its lower left corner
MOST_PICTURES = 10_000
FACE_PLACES, FACE_PICTURE = "texcoord", "texnumber"  # a list of two numbers a corner; which of the pictures
KINDS = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
}
KINDS |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"}
KINDS |= {"float64": "f8"}
READ = ("u1", "f4", "f8")  # kinds of red, green and blue of points that Blender takes as they are meant
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
BROKEN = (ValueError, IndexError, KeyError, struct.error)  # what a broken file raises: Blender's reader judges it
FACET = np.dtype([("normal", "<3f4"), ("points", "<9f4"), ("color", "<u2")])


def of_ply(path):
    """Colours that Blender does not read from a PLY file: {"vertex": (N, 3)} or else {"face": (F, 3)}; {} if it reads all."""
    order, elements, body = _header(path)
    coloured = {name: properties for name, _, properties in elements if _names(properties)}
    wanted = next((name for name in ("vertex", "face") if name in coloured), None)
    if wanted is None or (wanted == "vertex" and _is_read(coloured[wanted])):
        return {}
    try:
        colours = _of_element(_data(path, body), order, elements, wanted)
    except BROKEN:
        return {}
    return {wanted: _in_unit(colours)} if len(colours) else {}


def places_of_ply(path):
    """Places of a PLY's points or corners in its pictures: {"vertex": (N, 2)}, or {"corner": (C, 2), "lengths": (F,) corners of
    each face, "picture": (F,) its number}; {} if it has none.
    """
    order, elements, body = _header(path)
    declared = {name: {one: length for one, _, length in properties} for name, _, properties in elements}
    try:
        if declared.get("face", {}).get(FACE_PLACES):
            return _of_faces(_data(path, body), order, elements)
        if any(_names(properties, PLACES) for name, _, properties in elements if name == "vertex"):
            places = _of_element(_data(path, body), order, elements, "vertex", PLACES)
            return {"vertex": np.nan_to_num(places.astype(np.float32))}
    except BROKEN:
        pass
    return {}


def _header(path):
    """(byte order, elements, where the data starts) of a PLY; without elements if it cannot be understood."""
    with open(path, "rb") as file:
        header = re.match(rb"ply\s.*?\bend_header[ \t]*(\r\n|\n|\r)", file.read(HEADER_BYTES), re.DOTALL)
    if not header:
        return None, [], 0
    order, elements = _declared(header[0].decode("latin-1"))
    return order, [] if order is None else elements, header.end()


def _data(path, start):
    with open(path, "rb") as file:
        file.seek(start)
        return file.read()


def _rows(data, order):
    """Words of each line of a PLY in text that has any; None for one in bytes, which have an order."""
    return None if order else [line.split() for line in data.splitlines() if line.strip()]


def _is_read(properties):
    kinds = {name: kind for name, kind, _ in properties}
    return _names(properties) == NAMES[0] and kinds["red"] in READ


def _of_element(data, order, elements, wanted, choices=NAMES):
    """Colours (N, 3), in the file's numbers, of one element; of other `choices` of names as many columns as these have."""
    rows, place = _rows(data, order), 0
    for name, count, properties in elements:
        names = _names(properties, choices) if name == wanted else None
        if rows is not None:
            colours = _from_text(rows[place : place + count], properties, names) if names else None
            place += count
        else:
            colours, place = _from_bytes(data, place, order, count, properties, names)
        if name == wanted:
            return colours
    raise KeyError(wanted)


def _declared(header):
    """Byte order ("" for text, None if unknown) and elements [(name, count, [(property, kind, kind of its length)])]."""
    order, elements = None, []
    for line in header.splitlines():
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1:
            order = ORDERS.get(words[1])
        elif words[:1] == ["element"] and len(words) > 2 and words[2].isdigit():
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"] and elements and words[-2] in KINDS:
            elements[-1][2].append((words[-1], KINDS[words[-2]], KINDS.get(words[2]) if words[1] == "list" else None))
    return order, elements


def _names(properties, choices=NAMES):
    declared = {name: length for name, _, length in properties}
    return next((names for names in choices if all(declared.get(name, "list") is None for name in names)), None)


def _from_text(rows, properties, names):
    """Colours (N, 3) of an element's lines."""
    kinds = {name: kind for name, kind, _ in properties}
    colours = []
    for row in rows:
        place, values = 0, {}
        for name, _, length in properties:
            if length:
                place += int(row[place])
            else:
                values[name] = row[place]
            place += 1
        colours.append([values[name] for name in names])
    return np.array(colours, float).astype(kinds[names[0]])


def _from_bytes(data, place, order, count, properties, names):
    """Colours (N, 3) or None of an element that starts at `place`, and where the next one starts."""
    if not any(length for *_, length in properties):
        table, place = _table(data, place, order, count, [(name, kind, 1) for name, kind, _ in properties])
        return np.stack([table[name] for name in names], 1) if names else None, place
    return _from_lists(data, place, order, count, properties, names)


def _table(data, place, order, count, fields):
    kind = np.dtype(
        [(name, order + kind, width) if width != 1 else (name, order + kind) for name, kind, width in fields]
    )
    return np.frombuffer(data, kind, count, place), place + count * kind.itemsize


def _from_lists(data, place, order, count, properties, names):
    """Rows with lists: read at once where all have the first row's lengths, else one by one."""
    table, end = _list_table(data, place, order, count, properties)
    if table is None:
        return _row_by_row(data, place, order, count, properties, names)
    return np.stack([table[name] for name in names], 1) if names else None, end


def _list_table(data, place, order, count, properties):
    """Table of rows whose lists all have the first row's lengths, and where they end; (None, 0) if some have not."""
    start, lengths = place, []
    for _, kind, length in properties:
        if length:
            lengths.append(int(np.frombuffer(data, order + length, 1, place)[0]) if count else 0)
            place += np.dtype(length).itemsize + lengths[-1] * np.dtype(kind).itemsize
        else:
            place += np.dtype(kind).itemsize
    wanted, fields = iter(lengths), []
    for name, kind, length in properties:
        fields += [(f"{name} length", length, 1), (name, kind, next(wanted))] if length else [(name, kind, 1)]
    fields = [field for field in fields if field[2]]
    if start + count * (place - start) <= len(data):
        table, end = _table(data, start, order, count, fields)
        wanted = iter(lengths)
        if all((table[f"{name} length"] == next(wanted)).all() for name, _, length in properties if length):
            return table, end
    return None, 0


def _row_by_row(data, place, order, count, properties, names):
    codes = {name: order + np.dtype(kind).char for name, kind, _ in properties}
    colours = []
    for _ in range(count):
        values = {}
        for name, kind, length in properties:
            if length:
                (number,) = struct.unpack_from(order + np.dtype(length).char, data, place)
                if number < 0:
                    raise ValueError("a list of negative length")
                place += np.dtype(length).itemsize + number * np.dtype(kind).itemsize
            else:
                (values[name],) = struct.unpack_from(codes[name], data, place)
                place += np.dtype(kind).itemsize
        colours.append([values[name] for name in names or ()])
    kinds = {name: kind for name, kind, _ in properties}
    return np.array(colours, kinds[names[0]]) if names else None, place


def _of_faces(data, order, elements):
    """Read what `places_of_ply` says of corners."""
    rows, place = _rows(data, order), 0
    for name, count, properties in elements:
        if name == "face":
            break
        place = place + count if rows is not None else _from_bytes(data, place, order, count, properties, None)[1]
    table = _list_table(data, place, order, count, properties)[0] if rows is None else None
    if table is not None:
        corners, numbers = (
            table[FACE_PLACES].reshape(count, -1),
            table[FACE_PICTURE] if FACE_PICTURE in table.dtype.names else 0,
        )
        lengths, numbers = np.full(count, corners.shape[1] // 2), np.broadcast_to(numbers, count)
    else:
        each = (
            _unpacked(data, place, order, count, properties)
            if rows is None
            else (_values(row, properties) for row in rows[place : place + count])
        )
        found = [(np.array(row[FACE_PLACES], np.float32), row.get(FACE_PICTURE, 0)) for row in each]
        corners, lengths = np.concatenate([one for one, _ in found]), np.array([len(one) // 2 for one, _ in found])
        numbers = np.array([number for _, number in found])
    numbers = np.clip(np.nan_to_num(numbers), 0, MOST_PICTURES).astype(int)
    return {"corner": corners.reshape(-1, 2).astype(np.float32), "lengths": lengths, "picture": numbers}


def _values(words, properties):
    """{property: number, or numbers of a list} of a row of text."""
    values, place = {}, 0
    for name, _, length in properties:
        count = int(words[place]) if length else 1
        place += bool(length)
        numbers = [float(word) for word in words[place : place + count]]
        values[name] = numbers if length else numbers[0]
        place += count
    return values


def _unpacked(data, place, order, count, properties):
    """Yield the same of rows of bytes."""
    for _ in range(count):
        values = {}
        for name, kind, length in properties:
            number = 1
            if length:
                (number,) = struct.unpack_from(order + np.dtype(length).char, data, place)
                place += np.dtype(length).itemsize
            if not 0 <= number <= len(data):
                raise ValueError("a list that is longer than the file")
            row = struct.unpack_from(f"{order}{number}{np.dtype(kind).char}", data, place)
            place += number * np.dtype(kind).itemsize
            values[name] = row if length else row[0]
        yield values


def _in_unit(colours):
    """Numbers of any kind -> [0, 1]: bytes, or whatever their kind and their largest say."""
    most = colours.max(initial=0)
    steps = (1, 255) if colours.dtype.kind == "f" else (255, 65535)
    scale = steps[bool(most > steps[0])]
    return np.clip(np.nan_to_num(colours.astype(np.float32)) / scale, 0, 1)


def of_stl(path):
    """Points (F, 3, 3) and colours (F, 3) of the facets of a binary STL file; None without colours of facets or of the whole.

    Materialise's Magics writes `COLOR=` and four bytes into the header, and 5 bits each of red, green, blue from the lowest
    up, where bit 15 means "the colour of the whole"; VisCAM blue, green, red, where bit 15 means "has a colour".
    """
    with open(path, "rb") as file:
        header = file.read(84)
        count = int.from_bytes(header[80:84], "little")
        if not count or os.path.getsize(path) < 84 + count * FACET.itemsize:
            return None  # text, most likely
        body = file.read(count * FACET.itemsize)
    facets = np.frombuffer(body, FACET)
    bits, marked = facets["color"].astype(int), facets["color"] >> 15 == 1
    five = np.stack([bits & 31, bits >> 5 & 31, bits >> 10 & 31], 1) / np.float32(31)
    place = header[:80].find(b"COLOR=")
    if 0 <= place <= 70:
        whole = np.frombuffer(header, np.uint8, 3, place + 6) / np.float32(255)
        # writers of one colour leave all the bits unset
        colours = np.where(marked[:, None] | (not bits.any()), whole, five)
    elif marked.any() and not bits[~marked].any():  # else the two bytes hold something other than a colour
        colours = np.where(marked[:, None], five[:, ::-1], np.float32(1))
    else:
        return None
    return facets["points"].reshape(-1, 3, 3), colours.astype(np.float32)
