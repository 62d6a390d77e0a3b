"""Any of the three runs that deliver shards."""

from __future__ import annotations

from pipeline.config import RenderConfig
from pipeline.config_clip import ClipConfig
from pipeline.config_views import ImportConfig

RunConfig = RenderConfig | ImportConfig | ClipConfig
