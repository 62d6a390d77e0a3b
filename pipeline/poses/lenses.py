"""Lens models by the names that COLMAP gave them, which nerfstudio and others took over: name and parameters -> Lens."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.core.cameras import PINHOLE, Lens
from pipeline.core.errors import Skip

# model -> its parameters, in COLMAP's order
PARAMETERS: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "FOV": ("fx", "fy", "cx", "cy", "omega"),
    "SIMPLE_RADIAL_FISHEYE": ("f", "cx", "cy", "k1"),
    "RADIAL_FISHEYE": ("f", "cx", "cy", "k1", "k2"),
    "THIN_PRISM_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "sx1", "sy1"),
}
BENDS = {name: "theta" if name.endswith("FISHEYE") else "fov" if name == "FOV" else "none" for name in PARAMETERS}
NEEDED = "convert the pictures to those of a perspective camera first"  # of what no model of PARAMETERS says
LEAST_OMEGA = 1e-6  # radians; a smaller FOV lens is a pinhole


def lens(model: str, values: Mapping[str, float]) -> Lens:
    """Lens of a model with its parameters by name; those that are missing are 0. Raises Skip("unsupported_camera")."""
    if model not in PARAMETERS:
        raise Skip("unsupported_camera", f"{model} is none of {', '.join(PARAMETERS)}; {NEEDED}")
    bend = BENDS[model]
    if bend == "fov":
        omega = values.get("omega", 0.0)
        return Lens("fov", omega=omega) if abs(omega) > LEAST_OMEGA else PINHOLE

    def of(*names: str) -> tuple[float, ...]:
        return tuple(float(values.get(name, 0.0)) for name in names)

    k1, k2, k3, k4 = of("k1", "k2", "k3", "k4")
    rational = model == "FULL_OPENCV"
    p1, p2 = of("p1", "p2")
    d1, d2, d3 = of("k4", "k5", "k6") if rational else (0.0, 0.0, 0.0)
    s1, s2 = of("sx1", "sy1")
    return Lens(
        "theta" if bend == "theta" else "none", (k1, k2, k3, 0.0 if rational else k4), (d1, d2, d3), (p1, p2), (s1, s2)
    )
