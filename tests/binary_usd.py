"""Makes USDs of text binary, by the USD in Blender. Run as `python -I binary_usd.py FOLDER`; each of its folders is one object.

In each, `it.usd` and the layers beside it become binary in place, and `it.usdz` is made of all.
"""

import os
import sys
from pathlib import Path

import bpy

bpy.utils.expose_bundled_modules()
from pxr import Sdf, Usd  # noqa: E402

for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    archive = Usd.ZipFileWriter.CreateNew(str(folder / "it.usdz"))
    for path in sorted(folder.glob("*.usd"), key=lambda path: path.stem != "it"):  # the first is what an archive shows
        layer = Sdf.Layer.FindOrOpen(str(path))
        assert layer.Export(str(path.with_suffix(".usdc")))
        path.with_suffix(".usdc").rename(path)
        archive.AddFile(str(path), path.name)
    archive.Save()
sys.stdout.flush()
os._exit(0)  # Blender with USD's Python modules does not end by itself
