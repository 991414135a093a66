"""What has been measured so far, in a file, so that a killed run goes on where it stopped.

The search itself is not saved: it is deterministic, so a resumed run walks the same way again and finds every pass that was finished.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightline.errors import MediaError
from sightline.files import sweep_partials, whole_file

_FORMAT = "sightline-tuning"


class Checkpoint:
    """Key -> measured numbers, written to a file after every addition.

    Args:
        path: the file, or None to keep them in memory only.
        identity: what the numbers depend on: network, frames, settings.

    Raises:
        MediaError: the file cannot be read or written, is none of ours, or belongs to another tuning.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path = path
        self._identity = json.loads(json.dumps(identity))
        self.entries: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._read(path)
        if path is not None:
            sweep_partials(path)
        self.resumed = len(self.entries)
        self.save()  # an unwritable place shows before the work, not after it

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MediaError(f"cannot read the checkpoint '{path}': {error}. Delete it to start anew.") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("entries"), dict):
            raise MediaError(f"'{path}' is not a checkpoint of a tuning; name another file.")
        other = content.get("identity")
        if other != self._identity:
            differing = [key for key, value in self._identity.items() if not isinstance(other, dict) or other.get(key) != value]
            raise MediaError(
                f"the checkpoint '{path}' belongs to another tuning (other {', '.join(differing) or 'settings'}); "
                "delete it or name another file."
            )
        self.entries = content["entries"]

    def add(self, key: str, numbers: dict[str, Any]) -> None:
        """Keeps the numbers of one pass."""
        self.entries[key] = numbers
        self.save()

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        if self.path is None:
            return
        content = {"format": _FORMAT, "version": 1, "identity": self._identity, "entries": self.entries}
        try:
            with whole_file(self.path) as partial:
                partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
        except OSError as error:
            raise MediaError(f"cannot write the checkpoint '{self.path}': {error.strerror or error}. Choose a writable path.") from error
