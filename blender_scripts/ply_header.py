"""Rewrites PLY files whose header Blender's importer cannot parse, or crashes on: other line ends, blanks in any number."""

import os

LONGEST = 2**20  # bytes of a header
CHUNK = 2**24
END = b"end_header"


def plain(path, folder):
    """Path of the file with a header as Blender takes it: `path` itself if it is so, else of a copy in `folder`."""
    with open(path, "rb") as source:
        head = source.read(LONGEST)
        size, end = _header(head)
        header = b"".join(_line(line) + b"\n" for line in head[:size].splitlines() if line.strip())
        if not size or header == head[:size].replace(b"\r\n", b"\n"):
            return path
        copy = os.path.join(folder, "plain.ply")
        source.seek(size)
        is_text_of_returns = end == b"\r" and b"format ascii" in header
        with open(copy, "wb") as target:
            target.write(header)
            while chunk := source.read(CHUNK):
                target.write(chunk.replace(b"\r", b"\n") if is_text_of_returns else chunk)
    return copy


def _line(line):
    """A header's line with single blanks; comments may hold the name of a file, and stay."""
    words = line.split()
    return line.strip() if words[0] in (b"comment", b"obj_info") else b" ".join(words)


def _header(head):
    """Bytes up to and with the end of the line "end_header", and that end; (0, b"") if there is none."""
    at = 0
    while (at := head.find(END, at)) >= 0:
        before = head[:at].rstrip(b" \t")[-1:]
        after = at + len(END)
        rest = head[after : after + 64].lstrip(b" \t")
        if before in (b"\r", b"\n") and rest[:1] in (b"\r", b"\n"):
            # a "\n" after a "\r" is the first byte of the data, if the lines before end in "\r" alone
            end = rest[:2] if rest[:2] == b"\r\n" and b"\r\n" in head[:at] else rest[:1]
            return head.index(end, after) + len(end), end
        at = after
    return 0, b""
