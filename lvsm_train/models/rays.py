"""Plücker rays of cameras."""

from __future__ import annotations

import torch


def plucker_rays(c2w: torch.Tensor, fxfycxcy: torch.Tensor, hw: tuple[int, int]) -> torch.Tensor:
    """c2w (..., 4, 4), fxfycxcy (..., 4) in pixels of an image of size hw -> Plücker rays (..., 6, H, W), float32.

    Channels are [o x d, d] with |d| = 1, in the order of the official LVSM (arXiv 2410.17242): o is the camera centre, d
    points through the pixel's centre at +0.5. Always float32: under bfloat16 a ray of a 256-pixel image is half a pixel off.
    """
    with torch.autocast(c2w.device.type, enabled=False):
        c2w, k = c2w.float(), fxfycxcy.float()[..., None, None]
        height, width = hw
        y = torch.arange(height, device=c2w.device)[:, None] + 0.5
        x = torch.arange(width, device=c2w.device)[None, :] + 0.5
        camera_x = (x - k[..., 2, :, :]) / k[..., 0, :, :]  # (..., 1, W)
        camera_y = (y - k[..., 3, :, :]) / k[..., 1, :, :]  # (..., H, 1)
        camera = torch.stack(torch.broadcast_tensors(camera_x, camera_y, camera_x.new_ones(())), -1)  # (..., H, W, 3)
        direction = (c2w[..., None, None, :3, :3] * camera[..., None, :]).sum(-1)
        direction = torch.nn.functional.normalize(direction, dim=-1)
        origin = c2w[..., None, None, :3, 3].expand_as(direction)
        return torch.cat([torch.linalg.cross(origin, direction), direction], -1).movedim(-1, -3)
