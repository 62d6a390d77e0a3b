"""Files that mean harm, and how each has to end. For the .blend files it is run in Blender: `hostile.py FOLDER OUTSIDE`."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

RENDERED = ""  # in place of a reason: what was to do harm does nothing, and the rest of the object is shown
PICTURE_GONE, MTL_GONE, FOUND = {"missing_textures": 1}, {"missing_materials": 1}, {"mended": ["links"]}
BLENDS: dict[str, tuple[str, dict[str, Any]]] = {  # FOLDER/it.blend
    "blend_runs_scripts": (RENDERED, {}),
    "blend_picture_outside": (RENDERED, PICTURE_GONE),
    "blend_library_outside": ("missing_file", {}),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A file below the folder of assets, and how it has to end."""

    path: str
    reason: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # of what is rendered: what is said to be missing

    @property
    def name(self) -> str:
        return self.path.split("/")[0]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an asset is written: its own folder; what it must not reach; a server that nobody may call."""

    folder: Path
    outside: Path
    url: str

    def write(self, name: str, data: bytes | str) -> None:
        (self.folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    def fill(self, text: str) -> str:
        """UP/, OUTSIDE/ and URL/ stand for what is only known now: the ways to what is outside, and the server."""
        for word, value in (
            ("UP/", f"../../{self.outside.name}/"),
            ("OUTSIDE/", f"{self.outside}/"),
            ("URL/", f"{self.url}/"),
        ):
            text = text.replace(word, value)
        return text


def blends(assets: Path, outside: Path) -> None:
    """In Blender: a file with scripts and a driver, one with a texture and one with a library outside."""
    import bpy

    def box(location: float = 0.0) -> Any:
        bpy.ops.mesh.primitive_cube_add(size=1, location=(location, 0, 0), scale=(1, 1, 2))
        return bpy.context.object

    def save(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        bpy.ops.wm.save_as_mainfile(filepath=str(path), check_existing=False, relative_remap=False)

    write_canary = f"open({str(outside / 'written')!r}, 'w').write('ran')"
    bpy.ops.wm.read_factory_settings(use_empty=True)
    script = bpy.data.texts.new("evil.py")
    script.write(write_canary)
    script.use_module = True
    box().driver_add("location", 2).driver.expression = f"{write_canary} * 0"
    save(assets / "blend_runs_scripts" / "it.blend")

    bpy.ops.wm.read_factory_settings(use_empty=True)
    ob = box()
    paint = bpy.data.materials.new("paint")
    paint.use_nodes = True
    picture = paint.node_tree.nodes.new("ShaderNodeTexImage")
    picture.image = bpy.data.images.new("stolen", 8, 8)
    picture.image.source = "FILE"
    picture.image.filepath = f"//../../{outside.name}/secret.png"
    paint.node_tree.links.new(picture.outputs["Color"], paint.node_tree.nodes["Principled BSDF"].inputs["Base Color"])
    ob.data.materials.append(paint)
    save(assets / "blend_picture_outside" / "it.blend")

    bpy.ops.wm.read_factory_settings(use_empty=True)
    box().name = "secret"
    save(outside / "secret.blend")
    bpy.ops.object.delete()
    save(assets / "blend_library_outside" / "it.blend")
    bpy.ops.wm.link(directory=f"{outside / 'secret.blend'}/Object/", filename="secret")
    bpy.data.libraries[0].filepath = f"//../../{outside.name}/secret.blend"
    save(assets / "blend_library_outside" / "it.blend")


if __name__ == "__main__":
    blends(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.exit()

from tests import parts  # noqa: E402  (Blender's Python starts without our folder)

Make = Callable[[Place], None]
CASES: list[tuple[Case, Make]] = []


def write(assets: Path, outside: Path, url: str) -> list[Case]:
    """Writes everything: hostile assets below `assets`, one folder each; what they are after into `outside`."""
    outside.mkdir()
    (outside / "secret.png").write_bytes(parts.png(8, 8, (255, 0, 255)))
    (outside / "secret.bin").write_bytes(parts.CUBE)
    (outside / "secret.usdz").write_bytes(parts.archive(("secret.png", (outside / "secret.png").read_bytes())))
    (outside / "secret.mtl").write_text("newmtl paint\nKd 1 0 1\n")
    (outside / "secret.usda").write_text(parts.usda())
    (outside / "secret.dae").write_text(parts.dae("secret.png"))
    for case, make in CASES:
        (assets / case.name).mkdir(parents=True)
        make(Place(assets / case.name, outside, url))
    blender = [sys.executable, "-I", __file__, assets, outside]
    subprocess.run(blender, check=True, capture_output=True, timeout=300, cwd=assets)
    return [*(case for case, _ in CASES), *(Case(f"{name}/it.blend", *end) for name, end in BLENDS.items())]


def case(path: str, reason: str, facts: dict[str, Any] | None = None) -> Callable[[Make], Make]:
    """Registers what writes FOLDER/file, and how that has to end."""

    def register(make: Make) -> Make:
        CASES.append((Case(path, reason, facts or {}), make))
        return make

    return register


def content(path: str, reason: str, data: bytes | str) -> None:
    """Registers a file that nothing outside belongs to."""
    case(path, reason)(lambda place: place.write(path.split("/")[1], data))


# ---- out of the folder


def gltf(place: Place, **changes: Any) -> None:
    place.write("box.bin", parts.CUBE)
    place.write("it.gltf", json.dumps(parts.document(**changes)))


def gltf_names(
    folder: str,
    buffer: str = "box.bin",
    image: str = "paint.png",
    reason: str = RENDERED,
    facts: dict[str, Any] | None = None,
) -> None:
    """Registers a .gltf that names these files."""

    def make(place: Place) -> None:
        place.write("paint.png", parts.png(4, 4, (0, 128, 0)))
        buffers = [{"uri": place.fill(buffer), "byteLength": len(parts.CUBE)}]
        gltf(place, buffers=buffers, images=[{"uri": place.fill(image)}])

    case(f"{folder}/it.gltf", reason, PICTURE_GONE if facts is None else facts)(make)


gltf_names("gltf_buffer_upwards", buffer="UP/secret.bin", reason="escapes_folder")
gltf_names("gltf_picture_upwards", image="UP/secret.png")
gltf_names("gltf_percent", image="%2e%2e/%2E%2E/outside/secret.png")
gltf_names("gltf_percent_twice", image="%252e%252e/%252e%252e/outside/secret.png")
gltf_names("gltf_backslash", image="..\\..\\outside\\secret.png")
gltf_names("gltf_absolute", image="OUTSIDE/secret.png")
gltf_names("gltf_file_url", image="file://OUTSIDE/secret.png")
gltf_names("gltf_http_buffer", buffer="URL/box.bin", reason="escapes_folder")
gltf_names("gltf_http_picture", image="URL/gone.png")
gltf_names("gltf_http_picture_here", image="URL/paint.png", facts=FOUND)  # by its base name
gltf_names("gltf_unc", image="\\\\server\\share\\paint.png", facts=FOUND)
gltf_names("gltf_unc_upwards", image="\\\\..\\..\\outside\\secret.png")
gltf_names("gltf_nowhere", image="../../nowhere/gone.png")
gltf_names("gltf_buffer_unc", buffer="\\\\server\\share\\box.bin", reason="escapes_folder")
gltf_names("gltf_data_that_is_a_path", image="data:x/../UP/secret.png")
gltf_names("gltf_nul", image="paint.png\0/../UP/secret.png")
gltf_names("gltf_very_long", image="./" * 2000 + "UP/secret.png")


@case("gltf_picture_is_a_link/it.gltf", RENDERED, PICTURE_GONE)
def _(place: Place) -> None:
    gltf(place)
    (place.folder / "paint.png").symlink_to(place.outside / "secret.png")


@case("gltf_folder_is_a_link/it.gltf", RENDERED, PICTURE_GONE)
def _(place: Place) -> None:
    gltf(place, images=[{"uri": "pictures/secret.png"}])
    (place.folder / "pictures").symlink_to(place.outside)


@case("gltf_picture_is_a_pipe/it.gltf", RENDERED, PICTURE_GONE)
def _(place: Place) -> None:
    gltf(place)
    os.mkfifo(place.folder / "paint.png")


@case("gltf_buffer_is_a_link/it.gltf", "escapes_folder")
def _(place: Place) -> None:
    gltf(place)
    (place.folder / "box.bin").unlink()
    (place.folder / "box.bin").symlink_to(place.outside / "secret.bin")


@case("glb_picture_upwards/it.glb", RENDERED, PICTURE_GONE)
def _(place: Place) -> None:
    place.write(
        "it.glb", parts.glb(parts.document(buffers=parts.INSIDE, images=[{"uri": place.fill("UP/secret.png")}]))
    )


# ---- older, compressed, moved


def gltf_1(folder: str, reason: str, **changes: str) -> None:
    """Registers a glTF 1.0 that names these files; its only mesh is a triangle."""

    def make(place: Place) -> None:
        names = {
            key: {"uri": place.fill(uri)}
            for key, uri in ({"buffers": "box.bin", "images": "paint.png"} | changes).items()
        }
        place.write("box.bin", parts.CUBE)
        text = {
            "asset": {"version": "1.0"},
            "nodes": {"n": {"meshes": ["m"]}},
            "meshes": {"m": {"primitives": [{"attributes": {"POSITION": "a"}, "material": "m"}]}},
            "materials": {"m": {"values": {"diffuse": "t"}}},
            "textures": {"t": {"source": "one"}},
            "accessors": {"a": {"bufferView": "v", "componentType": 5126, "count": 6, "type": "VEC3"}},
            "bufferViews": {"v": {"buffer": "one"}},
        }
        place.write("it.gltf", json.dumps(text | {key: {"one": row} for key, row in names.items()}))

    case(f"{folder}/it.gltf", reason, {"mended": ["gltf_1"]} | PICTURE_GONE)(make)


gltf_1("gltf_1_is_read", RENDERED)
gltf_1("gltf_1_buffer_upwards", "escapes_folder", buffers="UP/secret.bin")
gltf_1("gltf_1_picture_upwards", RENDERED, images="UP/secret.png")


def meshopt(folder: str, reason: str, **changes: Any) -> None:
    """Registers a .glb whose positions are compressed, by what decodes to no box."""
    packed = {"buffer": 0, "byteLength": 64, "byteStride": 12, "count": 8, "mode": "ATTRIBUTES"} | changes
    views = parts.document()["bufferViews"]
    views[0]["extensions"] = {"EXT_meshopt_compression": packed}
    document = parts.document(buffers=parts.INSIDE, images=[], bufferViews=views)
    content(f"{folder}/it.glb", reason, parts.glb(document | {"extensionsUsed": ["EXT_meshopt_compression"]}))


meshopt("meshopt_garbage", "import_failed")
meshopt("meshopt_of_no_kind", "import_failed", mode="NONE", filter=[])
meshopt("meshopt_bomb", "decompression_bomb", count=2**31)
meshopt("meshopt_of_no_buffer", "import_failed", buffer=9)


@case("picture_near_is_no_file/it.gltf", RENDERED, PICTURE_GONE)
def _(place: Place) -> None:
    gltf(place, images=[{"uri": "C:/gone/paint.png"}])
    for name in ("a", "b"):
        (place.folder / name).mkdir()
    os.mkfifo(place.folder / "a" / "paint.png")
    (place.folder / "b" / "paint.png").symlink_to(place.outside / "secret.png")


@case("library_found_leads_outside/it.obj", RENDERED, FOUND | PICTURE_GONE)
def _(place: Place) -> None:
    place.write("it.obj", parts.obj("mtllib C:/gone/paint.mtl"))
    (place.folder / "a").mkdir()
    place.write("a/paint.mtl", place.fill("newmtl paint\nmap_Kd ../UP/secret.png\n"))


@case("library_by_absolute_path/it.obj", RENDERED, PICTURE_GONE)
def _(place: Place) -> None:
    """A copy of the OBJ must not name the library itself, either."""
    place.write("it.obj", parts.obj(f"mtllib {place.folder}/paint.mtl"))
    place.write("paint.mtl", place.fill("newmtl paint\nmap_Kd UP/secret.png\n"))


def obj_with(
    folder: str, library: str = "mtllib paint.mtl", line: str = "", facts: dict[str, Any] = PICTURE_GONE
) -> None:
    """Registers an .obj with a line that names its .mtl, and a line of that .mtl."""

    def make(place: Place) -> None:
        place.write("it.obj", parts.obj(place.fill(library)))
        place.write("paint.mtl", f"newmtl paint\n{place.fill(line)}\n")

    case(f"{folder}/it.obj", RENDERED, facts)(make)


obj_with("obj_library_upwards", "mtllib UP/secret.mtl", facts=MTL_GONE)
obj_with("obj_library_on_the_next_line", "  mtllib \\\n UP/secret.mtl", facts=MTL_GONE)
obj_with("obj_second_library", "mtllib paint.mtl UP/secret.mtl", facts=MTL_GONE | {"mended": ["materials"]})
obj_with("mtl_absolute", line="map_Kd OUTSIDE/secret.png")
obj_with("mtl_upwards", line="map_Kd -s 1 1 1 -clamp on UP/secret.png")
obj_with("mtl_backslash", line="bump -bm 0.5 ..\\..\\outside\\secret.png")
obj_with("mtl_quotes", line='map_Kd ."./."./outside/secret.png')
obj_with("mtl_file_url", line="map_d file://OUTSIDE/secret.png")
obj_with("mtl_blanks", line=f"map_Kd{' ' * 5000}UP/secret.png")


@case("obj_own_mtl_is_a_link/it.obj", RENDERED, MTL_GONE)
def _(place: Place) -> None:
    place.write("it.obj", parts.obj(""))
    (place.folder / "it.mtl").symlink_to(place.outside / "secret.mtl")


def usda_with(folder: str, metadata: str = "", extra: str = "", layer: str = "") -> None:
    """Registers a .usda: metadata of its prim, a line within it, metadata of the layer."""

    def make(place: Place) -> None:
        place.write("it.usda", place.fill(parts.usda(metadata, extra, layer)))
        place.write("beside.usda", place.fill(parts.usda("references = @UP/secret.usda@")))

    case(f"{folder}/it.usda", "escapes_folder")(make)


usda_with("usda_reference_upwards", "references = @UP/secret.usda@")
usda_with("usda_payload_absolute", "payload = @OUTSIDE/secret.usda@")
usda_with("usda_sublayer_upwards", layer="subLayers = [@./beside.usda@, @@@UP/secret.usda@@@]")
usda_with("usda_beside_goes_upwards", "references = @beside.usda@")
usda_with("usda_expression", 'references = @`"${UP}/secret.usda"`@')


def usda_paint(folder: str, picture: str) -> None:
    """Registers a .usda that shows a picture, and one that shows it by a reference."""

    def make(place: Place) -> None:
        place.write("it.usda", place.fill(parts.painted_usda(picture)))

    def through(place: Place) -> None:
        place.write("it.usda", parts.usda("references = @beside.usda@").replace('def Mesh "box"', 'over "box"'))
        place.write("beside.usda", place.fill(parts.painted_usda(picture)))

    case(f"{folder}/it.usda", RENDERED, PICTURE_GONE)(make)
    case(f"{folder}_beside/it.usda", RENDERED, PICTURE_GONE)(through)


usda_paint("usda_http_picture", "URL/paint.png")
usda_paint("usda_picture_upwards", "UP/secret.png")
usda_paint("usda_picture_absolute", "OUTSIDE/secret.png")
usda_paint("usda_picture_in_an_archive", "UP/secret.usdz[secret.png]")


def usdz(folder: str, reason: str, *members: tuple[str, bytes], packing: int = zipfile.ZIP_STORED) -> None:
    content(f"{folder}/it.usdz", reason, parts.archive(*members, packing=packing))


def usdz_paint(folder: str, picture: str) -> None:
    def make(place: Place) -> None:
        place.write("it.usdz", parts.archive(("it.usda", place.fill(parts.painted_usda(picture)).encode())))

    case(f"{folder}/it.usdz", RENDERED, PICTURE_GONE)(make)


usdz_paint("usdz_picture_upwards", "UP/secret.png")
usdz_paint("usdz_picture_absolute", "OUTSIDE/secret.png")


LAYER = parts.usda().encode()
usdz("usdz_slip", "bad_archive", ("it.usda", LAYER), ("../../outside/written", b"x"))
usdz("usdz_absolute", "bad_archive", ("it.usda", LAYER), ("/outside/written", b"x"))
usdz("usdz_compressed", "bad_archive", ("it.usda", LAYER), packing=zipfile.ZIP_DEFLATED)
usdz("usdz_bomb", "archive_bomb", ("zeros.png", bytes(10**7)), ("it.usda", LAYER), packing=zipfile.ZIP_DEFLATED)
usdz("usdz_inner_upwards", "escapes_folder", ("it.usda", parts.usda("references = @../outside/secret.usda@").encode()))
usdz("usdz_inner_absolute", "escapes_folder", ("it.usda", parts.usda("payload = @/outside/secret.usda@").encode()))
usdz(
    "usdz_large_picture", "image_too_large", ("it.usda", LAYER), ("0/a.png", parts.png(60000, 60000, (0, 0, 0), False))
)


def dae_with(folder: str, reason: str, picture: str = "paint.png", head: str = "", url: str = "#box") -> None:
    """Registers a .dae with this texture, document type, and geometry."""
    case(f"{folder}/it.dae", reason)(lambda place: place.write("it.dae", place.fill(parts.dae(picture, head, url))))


LAUGHS = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))


def dae_paint(folder: str, picture: str) -> None:
    case(f"{folder}/it.dae", RENDERED, PICTURE_GONE)(
        lambda place: place.write("it.dae", place.fill(parts.painted_dae(picture)))
    )


dae_paint("dae_file_url", "file://OUTSIDE/secret.png")
dae_paint("dae_upwards", "&#46;&#x2e;/%2e./outside/secret.png")
dae_paint("dae_http_picture", "URL/paint.png")
dae_with("dae_other_document", "escapes_folder", url="UP/secret.dae#box")
dae_with("dae_http_document", "escapes_folder", url="URL/box.dae#box")
dae_with("dae_laughs", "xml_entities", "&e9;", f'<!DOCTYPE COLLADA [<!ENTITY e0 "ha">{LAUGHS}]>')
dae_with(
    "dae_external_entity", "xml_entities", "&e;", '<!DOCTYPE COLLADA [<!ENTITY e SYSTEM "file://OUTSIDE/secret.dae">]>'
)
content("dae_cut/it.dae", "broken_xml", parts.dae("")[:-9])


def fbx_with(folder: str, reason: str, make: Callable[[Place], bytes]) -> None:
    case(f"{folder}/it.fbx", reason)(lambda place: place.write("it.fbx", make(place)))


def fbx_paint(folder: str, make: Callable[[Place], bytes]) -> None:
    case(f"{folder}/it.fbx", RENDERED, PICTURE_GONE)(lambda place: place.write("it.fbx", make(place)))


fbx_paint("fbx_absolute", lambda place: parts.fbx_box(Filename=f"{place.outside}/secret.png"))
fbx_paint("fbx_upwards", lambda place: parts.fbx_box(RelativeFilename="..\\..\\outside\\secret.png"))
fbx_paint("fbx_another_case", lambda place: parts.fbx_box(FileName=f"{place.outside}/SECRET.png".upper()))
fbx_paint("fbx_name_is_a_path", lambda place: parts.fbx_box(name=place.fill("UP/secret.png")))
fbx_paint("fbx_text", lambda place: parts.fbx_text(picture=f"{place.outside}/secret.png").encode())
fbx_paint("fbx_text_upwards", lambda place: parts.fbx_text(picture=place.fill("UP/secret.png")).encode())
BOMB = [parts.array(zlib.compress(bytes(10**5)), 2**29)] * 2
LIAR = parts.array(zlib.compress(bytes(10**8), 1), 10)
DEEP = parts.node(b"N")
for _ in range(100):
    DEEP = parts.node(b"N", [], [DEEP])
fbx_with("fbx_bomb", "decompression_bomb", lambda place: parts.fbx(parts.node(b"Vertices", BOMB)))
fbx_with("fbx_bomb_in_disguise", "decompression_bomb", lambda place: parts.fbx(parts.node(b"Vertices", [LIAR])))
fbx_with("fbx_deep", "too_complex", lambda place: parts.fbx(DEEP))


# ---- no file at all


@case("model_is_a_link/it.glb", "not_a_file")
def _(place: Place) -> None:
    (place.folder / "it.glb").symlink_to(place.outside / "secret.bin")


@case("model_is_a_pipe/it.obj", "not_a_file")
def _(place: Place) -> None:
    os.mkfifo(place.folder / "it.obj")


@case("model_is_a_device/it.stl", "not_a_file")
def _(place: Place) -> None:
    (place.folder / "it.stl").symlink_to("/dev/zero")


@case("model_is_a_folder/it.ply", "not_a_file")
def _(place: Place) -> None:
    (place.folder / "it.ply").mkdir()


content("empty/it.fbx", "file_empty", b"")
content(
    "lfs_pointer/it.glb", "lfs_pointer", f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
)
content("html_page/it.obj", "html_page", "<!DOCTYPE html><html><body>429 Too Many Requests</body></html>")
content("wrong_magic/it.usdz", "wrong_magic", b"\x7fELF" + bytes(100))
content("cut/it.glb", "truncated", parts.glb(parts.document(buffers=parts.INSIDE))[:-40])


# ---- more than fits


def glb(folder: str, reason: str, **changes: Any) -> None:
    content(
        f"{folder}/it.glb", reason, parts.glb(parts.document(**({"buffers": parts.INSIDE, "images": []} | changes)))
    )


def accessors(**changes: Any) -> list[dict[str, Any]]:
    return [{"componentType": 5126, "type": "VEC3"} | changes, *parts.document()["accessors"][1:]]


LARGE = parts.png(60000, 60000, (0, 0, 0), honest=False)
content(
    "glb_large_picture/it.glb",
    "image_too_large",
    parts.glb(
        parts.document(
            buffers=[{"byteLength": len(parts.CUBE) + len(LARGE)}],
            bufferViews=[*parts.document()["bufferViews"], {"buffer": 0, "byteOffset": 232, "byteLength": len(LARGE)}],
            images=[{"bufferView": 3, "mimeType": "image/png"}],
        ),
        parts.CUBE + LARGE,
    ),
)


@case("gltf_large_picture_beside/it.gltf", "image_too_large")
def _(place: Place) -> None:
    gltf(place)
    place.write("paint.png", LARGE)


glb("glb_count", "too_many_polygons", accessors=accessors(count=2**31))
glb("glb_count_of_a_view", "truncated", accessors=accessors(count=2**31, bufferView=0))
glb("glb_buffer_too_long", "truncated", buffers=[{"byteLength": 2**40}])
glb(
    "glb_instances",
    "too_many_polygons",
    nodes=[{"mesh": 0}] * 100,
    accessors=[*accessors(count=10**6)[:2], {"componentType": 5125, "type": "SCALAR", "count": 3 * 10**6}],
)
glb("glb_nodes_in_a_circle", "broken_gltf", nodes=[{"mesh": 0, "children": [1]}, {"children": [2]}, {"children": [1]}])
glb("glb_own_grandparent", "broken_gltf", nodes=[{"mesh": 0, "children": [1]}, {"children": [0]}])
content("gltf_deep/it.gltf", "broken_gltf", b'{"a":' * 100_000)
content("gltf_many_values/it.gltf", "too_complex", b'{"a":[' + b"{}," * 6_000_000 + b"{}]}")
PLY = (
    "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nelement face {}\nproperty list uchar int vertex_indices\n"
)
PLY += "end_header\n"
content("ply_vertices/it.ply", "truncated", PLY.format("binary_little_endian", 10**12, 1) + "0" * 100)
content("ply_faces/it.ply", "truncated", PLY.format("ascii", 3, 10**12) + "0\n" * 100)
for way, name in (("upwards", "UP/secret.png"), ("absolute", "OUTSIDE/secret.png"), ("http", "URL/paint.png")):
    case(f"ply_picture_{way}/it.ply", RENDERED, PICTURE_GONE)(
        lambda place, name=name: place.write("it.ply", place.fill(parts.painted_ply(name)))
    )
content("ply_negative/it.ply", "broken_header", PLY.format("ascii", -3, 1))
content("stl_triangles/it.stl", "truncated", b"x".ljust(80) + struct.pack("<I", 2**32 - 1) + bytes(500))
glb(
    "glb_eats_memory",
    "out_of_memory",
    accessors=accessors(count=30_000_000),
    meshes=[{"primitives": [{"attributes": {"POSITION": 0}}]}],
)

# ---- nonsense that only Blender can judge

content("abc_garbage/it.abc", "truncated", b"Ogawa\xff\0\1" + bytes(range(256)) * 40)
content("abc_garbage_within/it.abc", "empty", b"Ogawa\xff\0\1" + struct.pack("<QQ", 16, 4) + bytes(range(256)) * 40)
content("usdc_garbage/it.usdc", "import_failed", b"PXR-USDC\0\x08\0\0" + bytes(range(256)) * 40)
content("obj_indices/it.obj", "only_points", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 7 8 9\nf -4 -5 -6\nf 1 2 4000000000\n")
content("obj_nan/it.obj", "degenerate", "v nan nan nan\nv nan inf 0\nv -nan 0 0\nf 1 2 3\n")
content("obj_huge/it.obj", "absurd_scale", "v 1e30 0 0\nv 0 1e30 0\nv 0 0 1e30\nf 1 2 3\n")
