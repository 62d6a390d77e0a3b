"""Timing of a model: encoding, once per scene, and decoding, per view."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lvsm_train.data.batches import Batch
from lvsm_train.device.devices import now
from lvsm_train.models.lvsm import LVSM, image_size


@dataclass(frozen=True)
class Lap:
    """Time in seconds to encode `scenes` scenes and to decode `views` views with `pixels` pixels in all."""

    scenes: int
    views: int
    pixels: int
    encode_s: float
    decode_s: float

    def __add__(self, other: Lap) -> Lap:
        names = Lap.__dataclass_fields__
        return Lap(*(getattr(self, name) + getattr(other, name) for name in names))

    def rates(self) -> dict[str, float]:
        """Rates by name. encode_ms: per scene. ms_per_view, rays_per_s, fps: of decoding alone; a ray is a pixel."""
        return {
            "encode_ms": 1000 * self.encode_s / self.scenes,
            "ms_per_view": 1000 * self.decode_s / self.views,
            "rays_per_s": self.pixels / self.decode_s,
            "fps": self.views / self.decode_s,
        }


class Timed:
    """Model as a function from a batch to renderings (B, T, 3, H, W) that times each call.

    laps: uid -> lap of the object's batch. The first batch of each shape is rendered once untimed, as a warm-up that chooses
    kernels and allocates memory. A GPU is synchronized before each reading of the clock.
    """

    def __init__(self, net: LVSM) -> None:
        self.net = net
        self.laps: dict[str, Lap] = {}
        self._seen: set[tuple[torch.Size, torch.Size]] = set()

    def __call__(self, batch: Batch) -> torch.Tensor:
        shapes = batch.image.shape, batch.target_image.shape
        if shapes not in self._seen:
            self._seen.add(shapes)
            self._render(batch)
        start, encoded, end, made = self._render(batch)
        scenes, views, _, height, width = batch.target_image.shape
        lap = Lap(scenes, scenes * views, scenes * views * height * width, encoded - start, end - encoded)
        self.laps |= dict.fromkeys(batch.uids, lap)
        return made

    def _render(self, batch: Batch) -> tuple[float, float, float, torch.Tensor]:
        image, hw = batch.rgb, image_size(batch.image)
        start = now(image.device)
        scene = self.net.encode(image, batch.c2w, batch.fxfycxcy, time=batch.time)
        encoded = now(image.device)
        made = self.net.decode(scene, batch.target_c2w, batch.target_fxfycxcy, hw, time=batch.target_time)
        return start, encoded, now(image.device), made
