"""Turns what glTF 1.0 and shader-based materials say into the JSON of glTF 2.0: names become numbers, shaders become colours.

Only the JSON: buffers stay as they are. Shaders cannot be run, so a material keeps what its technique calls the diffuse
colour, the emission and the transparency, as the base colour, the emission and the alpha of a matte surface.
"""

from __future__ import annotations

from typing import Any

from pipeline.core.errors import Skip

Json = dict[str, Any]
BODIES = ("binary_glTF", "KHR_binary_glTF")  # ids of the buffer that stands in the .glb itself
EMPTY = "data:,"  # in place of a file that is in the .glb
KINDS = "buffers bufferViews accessors images samplers textures materials meshes skins nodes scenes animations".split()
ATTRIBUTES = {"TEXCOORD": "TEXCOORD_0", "COLOR": "COLOR_0", "JOINT": "JOINTS_0", "WEIGHT": "WEIGHTS_0"}
WIDTHS = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
NUMBERS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
BLEND = 3042  # WebGL's number of the state
DIFFUSE = ("diffuse", "basecolor", "albedo", "color", "tex")  # in what materials call it, the best first
OTHER = (
    "spec",
    "ambient",
    "emi",
    "normal",
    "bump",
    "light",
    "occlusion",
    "reflect",
    "shin",
    "rough",
    "metal",
    "opacity",
)
MATTE = {"metallicFactor": 0, "roughnessFactor": 1}


def upgraded(old: Json) -> Json:
    """Return glTF 1.0 as glTF 2.0; the buffer within a .glb comes first. Raises Skip("broken_gltf").

    A skin keeps its `bindShapeMatrix`, which 2.0 has not: the inverse bind matrices have to be multiplied by it.
    """
    try:
        return _Upgrade(old).document()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {str(error)[:100]}"
        raise Skip("broken_gltf", f"a glTF 1.0 with something missing or out of place ({said})") from None


class _Upgrade:
    """Rows of a glTF 1.0, and the number of each."""

    def __init__(self, old: Json) -> None:
        self.old = old
        self.rows: dict[str, Json] = {kind: dict(old.get(kind) or {}) for kind in KINDS}
        buffers = self.rows["buffers"]  # the one in the file first
        self.rows["buffers"] = {key: buffers[key] for key in sorted(buffers, key=lambda key: key not in BODIES)}
        self.numbers = {kind: {key: i for i, key in enumerate(rows)} for kind, rows in self.rows.items()}
        self.views: list[Json] = []
        self.joints = {row["jointName"]: key for key, row in self.rows["nodes"].items() if "jointName" in row}
        self.extra_nodes: list[Json] = []

    def document(self) -> Json:
        """Return the whole."""
        made: Json = {"asset": {"version": "2.0"}}
        made["buffers"] = [self.buffer(key, row) for key, row in self.rows["buffers"].items()]
        made["accessors"] = [self.accessor(row) for row in self.rows["accessors"].values()]
        made["images"] = [self.image(row) for row in self.rows["images"].values()]
        made["samplers"] = [_only(row, "magFilter minFilter wrapS wrapT") for row in self.rows["samplers"].values()]
        made["textures"] = [self.texture(row) for row in self.rows["textures"].values()]
        made["materials"] = [self.material(row) for row in self.rows["materials"].values()]
        made["meshes"] = [self.mesh(row) for row in self.rows["meshes"].values()]
        made["skins"] = [self.skin(row) for row in self.rows["skins"].values()]
        made["nodes"] = [self.node(row) for row in self.rows["nodes"].values()] + self.extra_nodes
        made["animations"] = [found for row in self.rows["animations"].values() if (found := self.animation(row))]
        made["scenes"] = [{"nodes": self.all_of("nodes", row.get("nodes"))} for row in self.rows["scenes"].values()]
        made["bufferViews"] = self.views
        if self.old.get("scene") in self.numbers["scenes"]:
            made["scene"] = self.number("scenes", self.old["scene"])
        if any("extensions" in row for row in made["materials"]):
            made["extensionsUsed"] = ["KHR_materials_unlit"]
        return {key: value for key, value in made.items() if value != []}

    def number(self, kind: str, key: str) -> int:
        return self.numbers[kind][key]

    def all_of(self, kind: str, keys: list[str] | None) -> list[int]:
        return [self.numbers[kind][key] for key in dict.fromkeys(keys or []) if key in self.numbers[kind]]

    def buffer(self, key: str, row: Json) -> Json:
        inside = key in BODIES or row.get("uri") == EMPTY
        return {"byteLength": row.get("byteLength", 0)} | ({} if inside else _only(row, "uri"))

    def view(self, key: str, least: int, stride: int = 0) -> int:
        """Make a bufferView for one user; `least`: its bytes, where the old one does not say."""
        row = self.rows["bufferViews"][key]
        self.views.append(
            {
                "buffer": self.number("buffers", row["buffer"]),
                "byteOffset": row.get("byteOffset", 0),
                "byteLength": row.get("byteLength") or least,
            }
            | ({"byteStride": stride} if stride else {})
        )
        return len(self.views) - 1

    def accessor(self, row: Json) -> Json:
        made = _only(row, "byteOffset componentType count type min max normalized")
        stride, start, count = row.get("byteStride", 0), row.get("byteOffset", 0), row["count"]
        width = WIDTHS[row["componentType"]] * NUMBERS[row["type"]]
        if "bufferView" in row:
            least = start + max(count - 1, 0) * (stride or width) + width
            made["bufferView"] = self.view(row["bufferView"], least, 0 if stride == width else stride)
        return made

    def image(self, row: Json) -> Json:
        inside = next((row["extensions"][key] for key in BODIES if key in row.get("extensions", {})), None)
        if inside:
            return _only(inside, "mimeType") | {"bufferView": self.view(inside["bufferView"], 0)}
        return _only(row, "name uri")

    def texture(self, row: Json) -> Json:
        found = {"source": ("images", row.get("source")), "sampler": ("samplers", row.get("sampler"))}
        return {name: self.number(kind, key) for name, (kind, key) in found.items() if key in self.numbers[kind]}

    def material(self, row: Json) -> Json:
        technique = (self.old.get("techniques") or {}).get(row.get("technique"), {})
        return _only(row, "name") | _surface(row, technique, technique.get("parameters", {}), self.texture_of)

    def shows_colors(self, key: str) -> bool:
        """True if a material's technique reads the vertices' colours, which exporters also leave in files without any use."""
        technique = (self.old.get("techniques") or {}).get(self.rows["materials"][key].get("technique"), {})
        read = technique.get("parameters", {}).values()
        return any(str(parameter.get("semantic", "")).startswith("COLOR") for parameter in read)

    def texture_of(self, value: Any) -> Json | None:
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        known = isinstance(one, str) and one in self.numbers["textures"]
        return {"index": self.number("textures", one)} if known else None

    def mesh(self, row: Json) -> Json:
        return _only(row, "name") | {"primitives": [self.primitive(part) for part in row.get("primitives", [])]}

    def primitive(self, row: Json) -> Json:
        attributes = {ATTRIBUTES.get(name, name): key for name, key in row.get("attributes", {}).items()}
        if row.get("material") in self.rows["materials"] and not self.shows_colors(row["material"]):
            attributes = {name: key for name, key in attributes.items() if not name.startswith("COLOR")}
        made = _only(row, "mode") | {
            "attributes": {
                name.replace("JOINT_", "JOINTS_").replace("WEIGHT_", "WEIGHTS_"): self.number("accessors", key)
                for name, key in attributes.items()
            }
        }
        for name, kind, key in (("indices", "accessors", "indices"), ("material", "materials", "material")):
            if row.get(key) in self.numbers[kind]:
                made[name] = self.number(kind, row[key])
        return made

    def skin(self, row: Json) -> Json:
        joints = [self.number("nodes", self.joints[name]) for name in row["jointNames"]]
        made = _only(row, "name bindShapeMatrix") | {"joints": joints}
        if row.get("inverseBindMatrices") in self.numbers["accessors"]:
            made["inverseBindMatrices"] = self.number("accessors", row["inverseBindMatrices"])
        return made

    def node(self, row: Json) -> Json:
        """Return a node; of several meshes the second and later ones become children of their own."""
        made = _only(row, "name matrix translation rotation scale")
        children = self.all_of("nodes", row.get("children"))
        skin = {"skin": self.number("skins", row["skin"])} if row.get("skin") in self.numbers["skins"] else {}
        meshes = self.all_of("meshes", row.get("meshes") or ([row["mesh"]] if "mesh" in row else []))
        if meshes:
            made |= {"mesh": meshes[0]} | skin
        for mesh in meshes[1:]:
            children.append(len(self.rows["nodes"]) + len(self.extra_nodes))
            self.extra_nodes.append({"mesh": mesh} | skin)
        return made | ({"children": children} if children else {})

    def animation(self, row: Json) -> Json | None:
        parameters, samplers = row.get("parameters", {}), row.get("samplers", {})
        names = {key: i for i, key in enumerate(samplers)}
        made = [
            {side: self.number("accessors", parameters.get(one[side], one[side])) for side in ("input", "output")}
            | _only(one, "interpolation")
            for one in samplers.values()
        ]
        channels = [
            {
                "sampler": names[one["sampler"]],
                "target": {"node": self.number("nodes", one["target"]["id"]), "path": one["target"]["path"]},
            }
            for one in row.get("channels", [])
            if one["target"].get("id") in self.numbers["nodes"] and one["sampler"] in names
        ]
        return {"channels": channels, "samplers": made} if channels else None


def _only(row: Json, names: str) -> Json:
    return {name: row[name] for name in names.split() if name in row}


# ---- materials


def plain_materials(document: Json) -> bool:
    """Give materials of a glTF 2.0 that are only a technique or "common" a plain surface, in place. True if there were any."""
    techniques = _inside(document, "KHR_techniques_webgl").get("techniques", [])

    def texture_of(value: Any) -> Json | None:
        is_info = isinstance(value, dict) and isinstance(value.get("index"), int)
        return {key: value[key] for key in ("index", "texCoord") if key in value} if is_info else None

    changed = False
    for row in document.get("materials", []):
        extensions = row.get("extensions", {})
        if "pbrMetallicRoughness" in row or not {"KHR_techniques_webgl", "KHR_materials_common"} & extensions.keys():
            continue
        used = _inside(row, "KHR_techniques_webgl")
        number = used.get("technique")
        known = isinstance(number, int) and 0 <= number < len(techniques)
        technique = techniques[number] if known else {}
        surface = _surface({"extensions": extensions} | used, technique, technique.get("uniforms", {}), texture_of)
        for name in ("KHR_techniques_webgl", "KHR_materials_common"):
            extensions.pop(name, None)
        row |= surface | {"extensions": extensions | surface.get("extensions", {})}
        changed = True
    return changed


def _inside(row: Json, name: str) -> Json:
    found = (row.get("extensions") or {}).get(name)
    return found if isinstance(found, dict) else {}


def _surface(row: Json, technique: Json, parameters: Json, texture_of: Any) -> Json:
    """Return the plain surface of a material. parameters: those of its technique; texture_of: a value -> {"index"} or None."""
    common = _inside(row, "KHR_materials_common")
    defaults = {name: of["value"] for name, of in parameters.items() if isinstance(of, dict) and "value" in of}
    values = {name.lower().removeprefix("u_"): value for name, value in (defaults | row.get("values", {})).items()}
    values |= {name.lower(): value for name, value in common.get("values", {}).items()}
    emission = next((value for name, value in values.items() if name.startswith("emi")), None)
    glow_map, glow = texture_of(emission), _color(emission)
    base_map, base = _diffuse(values, texture_of)
    made: Json = {}
    if common.get("technique") == "CONSTANT" and (glow_map or any((glow or [])[:3])):
        base_map, base, glow_map, glow = glow_map, glow, None, None
    if common.get("technique") == "CONSTANT":
        made["extensions"] = {"KHR_materials_unlit": {}}
    opaque = _number(values.get("transparency"), 1.0)
    states = technique.get("states", {}).get("enable", [])
    if common.get("transparent") or BLEND in states or opaque < 1:
        made["alphaMode"] = "BLEND"
        base = [*(base or [1.0, 1.0, 1.0, 1.0])]
        base[3] *= opaque
    surface: Json = dict(MATTE) | ({"baseColorTexture": base_map} if base_map else {})
    if base and not (base_map and made.get("alphaMode") is None):
        surface["baseColorFactor"] = base
    if glow_map:
        made |= {"emissiveTexture": glow_map, "emissiveFactor": [1, 1, 1]}
    elif glow and any(glow[:3]):
        made["emissiveFactor"] = glow[:3]
    return made | {"pbrMetallicRoughness": surface}


def _diffuse(values: Json, texture_of: Any) -> tuple[Json | None, list[float] | None]:
    """(texture, colour) of what comes nearest to a diffuse colour by its name; else the first texture there is."""
    own = {name: value for name, value in values.items() if not any(word in name for word in OTHER)}
    ranked = sorted(own, key=lambda name: next((i for i, word in enumerate(DIFFUSE) if word in name), len(DIFFUSE)))
    texture = next((found for name in ranked if (found := texture_of(own[name]))), None)
    named = (name for name in ranked if any(word in name for word in DIFFUSE))
    return texture, next((found for name in named if (found := _color(own[name]))), None)


def _color(value: Any) -> list[float] | None:
    """RGBA within 0..1 of three or four numbers; None for anything else."""
    if (
        not isinstance(value, list)
        or len(value) not in (3, 4)
        or not all(isinstance(one, (int, float)) for one in value)
    ):
        return None
    return [min(max(float(one), 0.0), 1.0) for one in [*value, 1.0][:4]]


def _number(value: Any, default: float) -> float:
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    return min(max(float(one), 0.0), 1.0) if isinstance(one, (int, float)) else default
