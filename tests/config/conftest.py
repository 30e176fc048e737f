"""The folder that each test of the config starts from: one server, nothing wrong.

What a folder can do is `folder`'s.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.folder import Folder, to_server


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.write(made.default, {"policy_model": to_server()})
    return made
