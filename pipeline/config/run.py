"""Union of the three configs whose runs deliver shards."""

from __future__ import annotations

from pipeline.config.clip import ClipConfig
from pipeline.config.render import RenderConfig
from pipeline.config.views import ImportConfig

RunConfig = RenderConfig | ImportConfig | ClipConfig
