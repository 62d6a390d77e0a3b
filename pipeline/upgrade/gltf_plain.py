"""Rewrites a glTF so that Blender 4.5 reads it as glTF 2.0 and its extensions mean it. Only JSON; in place."""

from __future__ import annotations

import importlib.util
from collections.abc import Container, Iterator
from typing import Any

from pipeline.core.errors import Skip
from pipeline.formats.gltf import MESHOPT, Document, is_embedded
from pipeline.upgrade import gltf_old

Json = dict[str, Any]
TAKEN = set(  # extensions that Blender's importer takes where a file requires them
    "KHR_materials_pbrSpecularGlossiness KHR_lights_punctual KHR_materials_unlit KHR_texture_transform "
    "KHR_materials_clearcoat KHR_mesh_quantization EXT_mesh_gpu_instancing KHR_draco_mesh_compression "
    "KHR_materials_variants KHR_materials_emissive_strength KHR_materials_transmission KHR_materials_specular "
    "KHR_materials_sheen KHR_materials_ior KHR_animation_pointer KHR_materials_volume EXT_texture_webp "
    "KHR_materials_anisotropy".split()
)
OURS = {*MESHOPT, "KHR_node_visibility", "KHR_binary_glTF"}
TRIMMINGS = (
    "KHR_materials_",
    "KHR_technique",
    "KHR_lights_",
    "KHR_xmp",
    "EXT_lights_",
    "KHR_node_",
    "MSFT_lod",
)  # left out, and no shape changes
BASIS = "KHR_texture_basisu"
READS_BASIS = importlib.util.find_spec("opengl_basisu") is not None  # which `blender_scripts/ktx2.py` decodes by
PICTURES = (BASIS, "EXT_texture_avif", "MSFT_texture_dds")  # a texture's `source` stands in for these


def plain(document: Document) -> bool:
    """Rewrite what the importer would not understand. True if anything was.

    Nodes that are invisible or of no scene but the first lose their mesh, and stay for their children. Raises Skip:
    unsupported_extension (what no part of it can be shown without), broken_gltf.
    """
    try:
        steps = [_extensions(document), gltf_old.plain_materials(document.json), _scene(document), _types(document)]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {str(error)[:100]}"
        raise Skip("broken_gltf", f"something is missing or out of place ({said})") from None
    return any(steps)


def _extensions(document: Document) -> bool:
    required = document.json.get("extensionsRequired", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise Skip("broken_gltf", "extensionsRequired is no list of names")
    left = set(required) - TAKEN - OURS
    if all("source" in row for row in document.rows("textures")):
        left -= set(PICTURES)
    unreadable = sorted(name for name in left if not name.startswith(TRIMMINGS))
    if unreadable:
        advice = (
            "install opengl-basisu (pip install -e '.[ktx2]'), or " if BASIS in unreadable and not READS_BASIS else ""
        )
        raise Skip("unsupported_extension", f"{', '.join(unreadable)[:200]}; {advice}export it without")
    taken = [name for name in required if name in TAKEN]
    used = document.json.get("extensionsUsed", [])
    if taken == required and set(required) <= set(used):
        return False
    document.json["extensionsRequired"] = taken
    document.json["extensionsUsed"] = [*dict.fromkeys([*used, *required])]
    return True


def _scene(document: Document) -> bool:
    """Take the meshes from nodes that the scene does not show: it is the one named, else the first."""
    nodes, scenes = document.rows("nodes"), document.rows("scenes")
    number = document.json.get("scene", 0)
    if not isinstance(number, int) or not 0 <= number < len(scenes):
        number = 0
    changed = bool(scenes) and (len(scenes) > 1 or "scene" in document.json) and document.json.get("scene") != number
    if changed:
        document.json["scene"] = number
    roots = [root for root in scenes[number].get("nodes", []) if 0 <= root < len(nodes)] if scenes else []
    shown = set(_visible(nodes, roots if roots else _roots(nodes)))
    hidden = [row for index, row in enumerate(nodes) if index not in shown and "mesh" in row]
    if not shown & {index for index, row in enumerate(nodes) if "mesh" in row}:
        hidden = []  # a scene that shows nothing was not meant
    for row in hidden:
        del row["mesh"]
        row.pop("skin", None)
    return bool(hidden) or changed


def _roots(nodes: list[Json]) -> list[int]:
    children = {child for row in nodes for child in row.get("children", [])}
    return [index for index in range(len(nodes)) if index not in children]


def _visible(nodes: list[Json], roots: list[int]) -> Iterator[int]:
    """Yield the nodes at and below `roots`, without those that KHR_node_visibility hides, and what is below them."""
    waiting, seen = list(roots), set(roots)
    while waiting:
        index = waiting.pop()
        row = nodes[index]
        if row.get("extensions", {}).get("KHR_node_visibility", {}).get("visible") is False:
            continue
        yield index
        for child in row.get("children", []):
            if child not in seen:
                seen.add(child)
                waiting.append(child)


def _types(document: Document) -> bool:
    """Leave out what has a wrong type and no weight: names that are no text, interpolations that are none."""
    rows = [row for key in document.json if isinstance(document.json[key], list) for row in document.json[key]]
    samplers = [row for animation in document.rows("animations") for row in animation.get("samplers", [])]
    named = [(row, key) for group, key in ((rows, "name"), (samplers, "interpolation")) for row in group]
    odd = [(row, key) for row, key in named if isinstance(row, dict) and not isinstance(row.get(key, ""), str | None)]
    for row, key in odd:
        del row[key]
    return bool(odd)


def take_basis(document: Document, files: Container[str]) -> bool:
    """Give textures without another picture the one in Basis Universal, in place. True if any are there, and can be decoded.

    files: URIs that have a file.
    """
    found = False
    for row in document.rows("textures") if READS_BASIS else ():
        extensions = row.get("extensions")
        basis = extensions.get(BASIS) if isinstance(extensions, dict) else None
        source = basis.get("source") if isinstance(basis, dict) else None
        is_there = _has_picture(document, source, files)
        if source is not None and (
            "source" not in row or (is_there and not _has_picture(document, row["source"], files))
        ):
            row["source"] = source
            found = found or is_there
    return found


def _has_picture(document: Document, source: Any, files: Container[str]) -> bool:
    """True for the number of an image that is within the document, or in a file that is there."""
    images = document.rows("images")
    if not isinstance(source, int) or not 0 <= source < len(images):
        return False
    uri = images[source].get("uri")
    return not isinstance(uri, str) or is_embedded(uri) or uri in files


def leave_out(document: Document, files: Container[str]) -> int:
    """Take out glossiness textures without a file, for which the importer fails. Returns their number.

    files: URIs that have a file.
    """
    textures = document.rows("textures")
    count = 0
    for row in document.rows("materials"):
        glossy = (row.get("extensions") or {}).get("KHR_materials_pbrSpecularGlossiness")
        info = glossy.get("specularGlossinessTexture") if isinstance(glossy, dict) else None
        number = info.get("index") if isinstance(info, dict) else None
        source = textures[number].get("source") if isinstance(number, int) and 0 <= number < len(textures) else None
        if glossy and source is not None and not _has_picture(document, source, files):
            del glossy["specularGlossinessTexture"]
            count += 1
    return count
