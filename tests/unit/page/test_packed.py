"""What is installed has the files of the page."""

from __future__ import annotations

from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

from agent.page.pages import ASSETS, files

ROOT = Path(__file__).parents[3]


def test_the_wheel_has_every_file_of_the_page():
    packed = {Path(one.distribution_path) for one in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert files()
    assert {Path("agent/page/assets") / path.name for path in files()} <= packed
    assert {path.name for path in files()} == {path.name for path in ASSETS.iterdir()}
