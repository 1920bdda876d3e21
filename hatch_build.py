"""Build hook: put the index of the method cards into the package, so that the first call parses no source."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CardIndex(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        source = Path(self.root) / "src"
        sys.path.insert(0, str(source))
        try:
            from nett.core.cards import all_cards

            all_cards(source / "nett")
        finally:
            sys.path.remove(str(source))
