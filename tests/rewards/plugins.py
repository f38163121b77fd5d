"""Packages that add rewards, made up and installed for one test."""

PLUGIN = """
from calibri.rewards import BatchedReward, RewardInfo

class Brightness(BatchedReward):
    info = RewardInfo("brightness", "1", unit="mean")

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = gain

    def score_batch(self, images, prompts):
        return images.float().mean((1, 2, 3)) * self.gain

def not_a_reward():
    return object()
"""


def install(folder, distribution, points, module=PLUGIN):
    name = distribution.replace("-", "_")
    (folder / f"{name}.py").write_text(module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{key} = {name}:{value}" for key, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[calibri.rewards]", *lines]))
    return name
