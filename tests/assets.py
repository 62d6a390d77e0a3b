"""Makes the tests' 3D files, by Blender's own exporters and by hand. Run as `python -I assets.py FOLDER`."""

import json
import math
import struct
import sys
from pathlib import Path

import bpy
import numpy as np

OUT = Path(sys.argv[1])


def reset():
    bpy.ops.wm.read_factory_settings(use_empty=True)


def save_blend(name):
    bpy.ops.wm.save_as_mainfile(filepath=str(OUT / f"{name}.blend"), check_existing=False)


def save_glb(name):
    bpy.ops.export_scene.gltf(filepath=str(OUT / f"{name}.glb"), export_format="GLB", export_lights=True)


def material(name, color, emission=0.0, alpha=1.0):
    made = bpy.data.materials.new(name)
    made.use_nodes = True
    shader = made.node_tree.nodes["Principled BSDF"]
    shader.inputs["Base Color"].default_value = (*color, 1)
    shader.inputs["Roughness"].default_value = 1.0
    shader.inputs["Specular IOR Level"].default_value = 0.0
    shader.inputs["Alpha"].default_value = alpha
    if emission:
        shader.inputs["Base Color"].default_value = (0, 0, 0, 1)
        shader.inputs["Emission Color"].default_value = (*color, 1)
        shader.inputs["Emission Strength"].default_value = emission
    return made


def cube(location=(0, 0, 0), size=1.0, color=(0.8, 0.1, 0.1), name="box"):
    bpy.ops.mesh.primitive_cube_add(size=size, location=location)
    ob = bpy.context.object
    ob.name = name
    ob.data.materials.append(material(name, color))
    return ob


def spheres():
    """Three emissive spheres whose bounding box is the unit cube once normalised; see test_reprojection."""
    reset()
    for location, color in SPHERES:
        bpy.ops.mesh.primitive_ico_sphere_add(radius=SPHERE_RADIUS, subdivisions=4, location=location)
        bpy.context.object.data.materials.append(material("glow", color, emission=1.0))
    save_glb("spheres")


SPHERE_RADIUS = 0.07
SPHERES = [((0.4, 0.1, -0.3), (1, 0, 0)), ((-0.35, 0.3, 0.25), (0, 1, 0)), ((0.05, -0.4, 0.35), (0, 0, 1))]


def moving():
    """The spheres on known curves over a second: one by its place, one by a bone, one by a shape key; see test_time."""
    reset()
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end, scene.render.fps = 0, 24, 24
    bpy.ops.object.armature_add(location=(0, 0, 0))
    rig = bpy.context.object
    bpy.ops.object.mode_set(mode="EDIT")
    rig.data.edit_bones[0].head, rig.data.edit_bones[0].tail, rig.data.edit_bones[0].roll = (0, 0, 0), (0, 1, 0), 0
    bpy.ops.object.mode_set(mode="OBJECT")
    made = []
    for location, color in SPHERES:
        bpy.ops.mesh.primitive_ico_sphere_add(radius=SPHERE_RADIUS, subdivisions=4, location=location)
        made.append(bpy.context.object)
        made[-1].data.materials.append(material("glow", color, emission=1.0))
    free, skinned, shaped = made
    skinned.data.transform(skinned.matrix_world)
    skinned.matrix_world.identity()
    skinned.vertex_groups.new(name=rig.data.bones[0].name).add(range(len(skinned.data.vertices)), 1.0, "REPLACE")
    skinned.modifiers.new("rig", "ARMATURE").object = rig
    skinned.parent = rig
    shaped.shape_key_add(name="Basis")
    key = shaped.shape_key_add(name="up")
    for point in key.data:
        point.co.z += 0.3
    bone = rig.pose.bones[0]
    for frame in range(25):
        angle = frame / 24 * 2 * math.pi
        free.location = (
            SPHERES[0][0][0] + 0.2 * math.sin(angle),
            SPHERES[0][0][1] + 0.1 * math.cos(angle),
            SPHERES[0][0][2],
        )
        free.keyframe_insert("location", frame=frame)
        bone.location = (0, 0.2 * math.sin(angle), 0.1 * math.sin(2 * angle))
        bone.keyframe_insert("location", frame=frame)
        key.value = 0.5 - 0.5 * math.cos(angle)
        key.keyframe_insert("value", frame=frame)
    save_blend("moving")
    how = {"export_animation_mode": "SCENE", "export_anim_scene_split_object": False}  # one animation for all three
    bpy.ops.export_scene.gltf(filepath=str(OUT / "moving.glb"), export_format="GLB", **how)
    bpy.ops.wm.usd_export(filepath=str(OUT / "moving.usdc"), export_animation=True)
    bpy.ops.wm.alembic_export(filepath=str(OUT / "moving.abc"), start=0, end=24, as_background_job=False)
    # the same, of which nothing can be seen to move: a ball of one colour that turns
    reset()
    bpy.ops.mesh.primitive_uv_sphere_add(segments=256, ring_count=128)
    bpy.context.object.data.materials.append(material("plain", (0.5, 0.5, 0.5)))
    bpy.ops.object.shade_smooth()
    for frame, angle in ((1, 0.0), (25, 2 * math.pi)):
        bpy.context.object.rotation_euler = (0, 0, angle)
        bpy.context.object.keyframe_insert("rotation_euler", frame=frame)
    save_glb("turning_ball")
    # two animations: a long one along x, a short one along z
    reset()
    ob = cube()
    for name, axis, last in (("along", 0, 48), ("up", 2, 12)):
        action = bpy.data.actions.new(name)
        ob.animation_data_create().action = action
        for frame, far in ((0, 0.0), (last, 2.0)):
            ob.location = [far * (axis == number) for number in range(3)]
            ob.keyframe_insert("location", frame=frame)
        track = ob.animation_data.nla_tracks.new()
        track.name = name
        track.strips.new(name, 0, action).action_slot = action.slots[0]
        ob.animation_data.action = None
    ob.location = (0, 0, 0)
    save_glb("two_animations")


def placements():
    reset()
    cube((500, -300, 200))
    save_glb("off_origin")
    reset()
    cube((-5, 0, 0), name="left")
    cube((5, 0, 0), color=(0.1, 0.1, 0.8), name="right")
    save_glb("two_roots")
    for name, size in (("tiny", 1e-4), ("huge", 1e5)):
        reset()
        cube((2 * size, 0, 0), size)
        save_glb(name)


def rigged():
    """A small cube on a bone, far from the origin; importers add an invisible unit Icosphere for the bone's shape."""
    reset()
    bpy.ops.object.armature_add(location=(0, 0, 0))
    rig = bpy.context.object
    ob = cube((0, 0, 5), 0.1)
    group = ob.vertex_groups.new(name=rig.data.bones[0].name)
    group.add(range(8), 1.0, "REPLACE")
    modifier = ob.modifiers.new("rig", "ARMATURE")
    modifier.object = rig
    ob.parent = rig
    save_glb("rigged")


def animated():
    """The rest shape stands at z = 0; the first frame's shape key has moved it to z = 7."""
    reset()
    ob = cube()
    ob.shape_key_add(name="Basis")
    key = ob.shape_key_add(name="up")
    for point in key.data:
        point.co.z += 7
    key.value = 1.0
    key.keyframe_insert("value", frame=1)
    key.value = 0.0
    key.keyframe_insert("value", frame=20)
    save_blend("animated")


def instances():
    reset()
    hidden = bpy.data.collections.new("parts")
    ob = cube((0, 0, 0), 2.0)
    bpy.context.scene.collection.objects.unlink(ob)
    hidden.objects.link(ob)
    for x in (0, 6):
        empty = bpy.data.objects.new("place", None)
        empty.instance_type, empty.instance_collection = "COLLECTION", hidden
        empty.location = (x, 0, 3)
        bpy.context.scene.collection.objects.link(empty)
    save_blend("instances")


def curves():
    reset()
    bpy.ops.curve.primitive_bezier_circle_add(radius=2, location=(10, 0, 0))
    bpy.context.object.data.bevel_depth = 0.3
    save_blend("curve")
    reset()
    bpy.ops.object.text_add(location=(3, 3, 3))
    bpy.context.object.data.extrude = 0.2
    save_blend("text")


def hidden():
    """A parent that is not rendered but moves its child; a huge hidden object; a camera and a strong light."""
    reset()
    parent = cube((7, 0, 0), 3.0, name="parent")
    parent.hide_render = True
    child = cube((0, 0, 0), 1.0, name="child")
    child.parent = parent
    bpy.context.view_layer.update()
    big = cube((0, 0, 0), 100.0, name="big")
    big.hide_render = True
    unseen = cube((3, 0, 0), 1.0, (0.1, 0.8, 0.1), name="hidden in the viewport only")
    unseen.hide_viewport = True
    bpy.ops.object.light_add(type="SUN", location=(0, 0, 50))
    bpy.context.object.data.energy = 1000
    bpy.ops.object.camera_add(location=(0, 0, 80))
    save_blend("hidden")


def alpha_layers():
    """A red glowing card between two stacks of 12 fully transparent planes that are larger than it."""
    reset()
    clear = material("clear", (0, 0, 0), alpha=0.0)
    for index in [*range(-12, 0), *range(1, 13)]:
        bpy.ops.mesh.primitive_plane_add(size=2, location=(0, 0, index * 0.01))
        bpy.context.object.data.materials.append(clear)
    bpy.ops.mesh.primitive_plane_add(size=1.2, location=(0, 0, 0))
    bpy.context.object.data.materials.append(material("card", (1, 0, 0), emission=1.0))
    bpy.ops.mesh.primitive_cube_add(size=0.4, location=(0, 0, 0.4))
    bpy.context.object.data.materials.append(material("post", (1, 0, 0), emission=1.0))
    save_blend("alpha_layers")


def beyond_their_points():
    """What Cycles shows farther out than any vertex: a surface that its material displaces, and particle hair."""
    reset()
    bumpy = material("displaced", (0.8, 0.4, 0.1))
    bumpy.displacement_method = "DISPLACEMENT"
    tree = bumpy.node_tree
    displace = tree.nodes.new("ShaderNodeDisplacement")
    displace.inputs["Height"].default_value = 1.0
    displace.inputs["Midlevel"].default_value = 0.0
    displace.inputs["Scale"].default_value = 0.4
    tree.links.new(displace.outputs["Displacement"], tree.nodes["Material Output"].inputs["Displacement"])
    bpy.ops.mesh.primitive_ico_sphere_add(radius=1, subdivisions=4)
    bpy.context.object.data.materials.append(bumpy)
    save_blend("displaced")
    reset()
    hairy = cube((0, 0, 0), 1.0)
    hairy.modifiers.new("hair", "PARTICLE_SYSTEM")
    hair = hairy.particle_systems[0].settings
    hair.type, hair.count, hair.hair_length, hair.display_step, hair.render_step = "HAIR", 200, 0.3, 3, 3
    save_blend("hair")


def textured(fill, path, name):
    """A cube with an image texture: packed in the file where `path` is None."""
    reset()
    ob = cube(name=name)
    image = bpy.data.images.new("paint", 8, 8)
    image.pixels[:] = list(fill) * 64
    if path is None:
        image.pack()
    else:
        image.filepath_raw, image.file_format = str(path), "PNG"
        image.save()
    nodes, links = ob.data.materials[0].node_tree.nodes, ob.data.materials[0].node_tree.links
    texture = nodes.new("ShaderNodeTexImage")
    texture.image = image
    links.new(texture.outputs["Color"], nodes["Principled BSDF"].inputs["Base Color"])


def unseen():
    """A unit cube at the origin, each time with something around it that no ray can hit; and one that is there only later."""
    for name, add in (("clear_shell", clear_shell), ("scale_0", scale_0), ("sliver", sliver)):
        reset()
        cube()
        add()
        save_glb(name)
    reset()
    growing = cube()
    for frame, size in ((1, 0.0), (20, 1.0)):
        growing.scale = (size, size, size)
        growing.keyframe_insert("scale", frame=frame)
    save_blend("growing")


def clear_shell():
    bpy.ops.mesh.primitive_uv_sphere_add(radius=30)
    bpy.context.object.data.materials.append(material("clear", (1, 1, 1), alpha=0.0))


def scale_0():
    cube((50, 0, 0)).scale = (0, 0, 0)


def sliver():
    mesh = bpy.data.meshes.new("sliver")
    mesh.from_pydata([(0, 0, 0), (70, 0, 0), (35, 0, 0)], [], [(0, 1, 2)])
    bpy.context.scene.collection.objects.link(bpy.data.objects.new("sliver", mesh))


def textures():
    picture = OUT / "paint.png"
    textured((1, 0, 0, 1), picture, "embedded")
    bpy.ops.export_scene.fbx(filepath=str(OUT / "embedded.fbx"), path_mode="COPY", embed_textures=True)
    picture.unlink()
    textured((1, 0, 0, 1), picture, "lost")
    bpy.ops.wm.obj_export(filepath=str(OUT / "missing_texture.obj"), path_mode="RELATIVE")
    picture.unlink()


def by_hand():
    """PLY with colours, an OBJ with NaN far from the origin, an empty scene, a cube like Blender's own."""
    corners = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1.0, 1.5)]
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    vertices = "\n".join(f"{x} {y} {z} 255 0 0" for x, y, z in corners)
    indices = "\n".join(f"4 {' '.join(map(str, face))}" for face in faces)
    head = "ply\nformat ascii 1.0\nelement vertex 8\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    head += "".join(f"property uchar {channel}\n" for channel in ("red", "green", "blue"))
    head += "element face 6\nproperty list uchar int vertex_indices\nend_header\n"
    (OUT / "red.ply").write_text(f"{head}{vertices}\n{indices}\n")

    angles = np.linspace(0, 2 * math.pi, 2000, endpoint=False)
    ring = [f"v {1000 + math.cos(a):.6f} {1000 + math.sin(a):.6f} {z}" for a in angles for z in (0, 1)]
    ring[17] = "v nan nan nan"
    quads = [f"f {2 * i + 1} {2 * i + 2} {2 * i + 4} {2 * i + 3}" for i in range(1999)]
    (OUT / "nan.obj").write_text("\n".join(ring + quads))

    (OUT / "empty_scene.obj").write_text("# nothing\n")
    (OUT / "degenerate.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    reset()
    bpy.ops.mesh.primitive_cube_add(size=2)
    save_glb("cube_of_side_2")
    document = {"asset": {"version": "2.0"}, "extensionsRequired": ["ACME_unheard_of"]}
    text = json.dumps(document).encode().ljust(100)
    chunk = struct.pack("<II", len(text), 0x4E4F534A) + text
    (OUT / "unheard_of.glb").write_bytes(struct.pack("<III", 0x46546C67, 2, 12 + len(chunk)) + chunk)


def surfaces():
    """A ring of spheres, each of another kind of material; test_surfaces has what each of them says."""
    reset()

    def principled(tree, color, roughness, metallic):
        node = tree.nodes.new("ShaderNodeBsdfPrincipled")
        node.inputs["Base Color"].default_value = (*color, 1)
        node.inputs["Roughness"].default_value, node.inputs["Metallic"].default_value = roughness, metallic
        return node.outputs[0]

    def two(tree, kind, first, second, factor=None):
        node = tree.nodes.new(kind)
        if factor is not None:
            node.inputs[0].default_value = factor
        for socket, shader in zip(node.inputs[-2:], (first, second), strict=True):
            tree.links.new(shader, socket)
        return node.outputs[0]

    def diffuse(tree):
        node = tree.nodes.new("ShaderNodeBsdfDiffuse")
        node.inputs["Color"].default_value = (0.1, 0.6, 0.2, 1)
        return node.outputs[0]

    def mixed(tree):
        ends = principled(tree, (0.8, 0, 0), 0.2, 0), principled(tree, (0, 0, 0.8), 0.6, 1)
        return two(tree, "ShaderNodeMixShader", *ends, 0.25)

    def see_through(tree):
        ends = principled(tree, (0.7, 0.6, 0.1), 0.4, 0), tree.nodes.new("ShaderNodeBsdfTransparent").outputs[0]
        return two(tree, "ShaderNodeMixShader", *ends, 0.5)

    def glowing(tree):
        ends = tree.nodes.new("ShaderNodeEmission").outputs[0], principled(tree, (0.2, 0.7, 0.7), 0.9, 0)
        return two(tree, "ShaderNodeAddShader", *ends)

    def grouped(tree):
        inner = bpy.data.node_groups.new("inside", "ShaderNodeTree")
        inner.interface.new_socket("BSDF", in_out="OUTPUT", socket_type="NodeSocketShader")
        inner.links.new(principled(inner, (0.3, 0.1, 0.6), 0.7, 1), inner.nodes.new("NodeGroupOutput").inputs[0])
        node = tree.nodes.new("ShaderNodeGroup")
        node.node_tree = inner
        return node.outputs[0]

    kinds = [lambda tree: principled(tree, (0.5, 0.2, 0.1), 0.3, 1), diffuse, mixed, see_through, glowing, grouped]
    for number, kind in enumerate([*kinds, "no nodes", None]):
        turn = 2 * math.pi * number / 8
        bpy.ops.mesh.primitive_ico_sphere_add(
            radius=0.3, subdivisions=3, location=(math.cos(turn), math.sin(turn), 0.4 * (number % 2))
        )
        if kind is None:
            continue
        made = bpy.data.materials.new(f"kind {number}")
        bpy.context.object.data.materials.append(made)
        made.diffuse_color = (0.3, 0.3, 0.65, 1)
        made.use_nodes = kind != "no nodes"
        if made.use_nodes:
            made.node_tree.nodes.clear()
            output = made.node_tree.nodes.new("ShaderNodeOutputMaterial")
            made.node_tree.links.new(kind(made.node_tree), output.inputs["Surface"])
    save_blend("surfaces")


def painted():
    """Cubes with red corners, in the formats that Blender writes and whose importers link no colours to a material."""
    for name in ("bare", "white"):
        reset()
        bpy.ops.mesh.primitive_cube_add(size=1)
        mesh = bpy.context.object.data
        if name == "white":
            mesh.materials.append(material("white", (1, 1, 1)))
        mesh.color_attributes.new("Col", "BYTE_COLOR", "CORNER").data.foreach_set("color", [1, 0, 0, 1] * 24)
        bpy.ops.export_scene.fbx(filepath=str(OUT / f"painted_{name}.fbx"))
    bpy.ops.wm.alembic_export(filepath=str(OUT / "painted.abc"), vcolors=True, as_background_job=False)


def without_image():
    """Cubes whose colours, and cubes whose normals, texture nodes without an image give, with the nodes in a group or not."""
    reset()

    def texture(tree, is_grouped):
        if not is_grouped:
            return tree.nodes.new("ShaderNodeTexImage").outputs[0]
        inside = bpy.data.node_groups.new("inside", "ShaderNodeTree")
        inside.interface.new_socket("Color", in_out="OUTPUT", socket_type="NodeSocketColor")
        inside.links.new(texture(inside, False), inside.nodes.new("NodeGroupOutput").inputs[0])
        node = tree.nodes.new("ShaderNodeGroup")
        node.node_tree = inside
        return node.outputs[0]

    for number in range(4):
        tree = cube((3 * number, 0, 0), color=(0.2, 0.2, 0.2)).data.materials[0].node_tree
        shader, value = tree.nodes["Principled BSDF"], texture(tree, is_grouped=number % 2)
        if number < 2:
            tree.links.new(value, shader.inputs["Base Color"])
        else:
            normals = tree.nodes.new("ShaderNodeNormalMap")
            tree.links.new(value, normals.inputs["Color"])
            tree.links.new(normals.outputs[0], shader.inputs["Normal"])
    save_blend("without_image")


def scripted():
    """A .blend whose registered text writes a file when scripts may run."""
    reset()
    cube((0, 0, 0), 1.0)
    cube((1, 0, 0), 0.5, (0.1, 0.5, 0.1))
    text = bpy.data.texts.new("evil.py")
    text.write(f"open({str(OUT / 'canary')!r}, 'w').write('ran')")
    text.use_module = True
    save_blend("scripted")


def families():
    """Parents that are rendered and sort before or after their children; one in a collection that is excluded."""
    for child, name in (("a", "child_first"), ("z", "child_last")):
        reset()
        parent = cube((0, 0, 0), 1.0, name="m")
        cube((3, 0, 0), 1.0, name=child).parent = parent
        save_blend(name)
    reset()
    parent = cube((9, 0, 0), 1.0, name="m")
    cube((0, 0, 0), 1.0, name="a").parent = parent
    left_out = bpy.data.collections.new("left out")
    bpy.context.scene.collection.children.link(left_out)
    left_out.objects.link(parent)
    bpy.context.scene.collection.objects.unlink(parent)
    bpy.context.view_layer.layer_collection.children[0].exclude = True
    save_blend("parent_left_out")


def shared_instances():
    """Instances, one in another, of a collection that is also shown itself."""
    reset()
    near = bpy.data.collections.new("near")
    bpy.context.scene.collection.children.link(near)
    near.objects.link(cube((0, 0, 0), 1.0))
    bpy.context.scene.collection.objects.unlink(near.objects[0])
    outer = bpy.data.collections.new("outer")
    for name, shows, into in (("inner", near, outer), ("copy", outer, bpy.context.scene.collection)):
        instance = bpy.data.objects.new(name, None)
        instance.instance_type, instance.instance_collection, instance.location = "COLLECTION", shows, (3, 0, 0)
        into.objects.link(instance)
    save_blend("shared_instances")


def modes():
    """A large and a small cube, saved while the large one, or both, were worked on."""
    for mode in ("EDIT", "SCULPT", "WEIGHT_PAINT"):
        for how in ("one", "both", "hidden"):
            reset()
            cube((0, 0, 0), 0.5)
            large = cube((0, 0, 0), 2.0)
            if mode == "EDIT":
                large.modifiers.new("smooth", "SUBSURF").subdivision_type = "SIMPLE"
            if how == "both":
                bpy.ops.object.select_all(action="SELECT")
            bpy.ops.object.mode_set(mode=mode)
            large.hide_set(how == "hidden")
            save_blend(f"saved_in_{mode.lower()}_{how}")
    reset()
    bpy.ops.object.text_add()
    bpy.context.object.data.extrude = 0.2
    bpy.ops.object.mode_set(mode="EDIT")
    save_blend("saved_in_edit_text")


for make in (
    spheres,
    moving,
    placements,
    rigged,
    animated,
    instances,
    curves,
    hidden,
    alpha_layers,
    beyond_their_points,
    textures,
    by_hand,
    surfaces,
    unseen,
    painted,
    without_image,
    scripted,
    families,
    shared_instances,
    modes,
):
    make()
