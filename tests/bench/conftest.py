"""Small random networks for the tests here, written once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import networks  # noqa: E402


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    """Option -> file or folder of each network."""
    folder = tmp_path_factory.mktemp("networks")
    return {
        "--inception": networks.write_inception(folder / "inception.pth", divide=8),
        "--clip": networks.write_clip(folder / "clip"),
        "--image-reward": networks.write_image_reward(folder / "image-reward"),
    }
