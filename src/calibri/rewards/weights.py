"""Weights of reward models: where they are, read from safetensors only, loaded strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn

from calibri.errors import RewardError


@dataclass(frozen=True)
class Checkpoint:
    """Where the files of a reward model are: a hub repository, or a folder in its place.

    Attributes:
        repo_id: Hugging Face repository.
        revision: branch, tag or commit; None is the default branch.
        folder: local folder that holds the files under the same names, used instead of the hub.
    """

    repo_id: str
    revision: str | None = None
    folder: Path | None = None

    def __str__(self) -> str:
        return str(self.folder) if self.folder else f"{self.repo_id}@{self.revision or 'main'}"

    def file(self, name: str) -> Path:
        """Return a file's path, downloading it when it is not cached.

        Raises:
            RewardError: it is neither in the folder, nor cached, nor to be had from the hub.
        """
        if self.folder is not None:
            path = self.folder / name
            if not path.is_file():
                raise RewardError(f"'{name}' is missing in '{self.folder}'. Put the file there.")
            return path
        try:
            return Path(hf_hub_download(self.repo_id, name, revision=self.revision))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise RewardError(
                f"Cannot fetch '{name}' of '{self.repo_id}' (revision {self.revision or 'main'}): "
                f"{type(error).__name__}. Connect to the hub, or download the file and pass its "
                "folder."
            ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        RewardError: the file is of another kind or damaged.
    """
    if path.suffix != ".safetensors":
        raise RewardError(
            f"'{path.name}' is not a safetensors file, and Calibri opens no other weights. Convert "
            f"it once with: calibri rewards convert {path}"
        )
    try:
        return load_file(path)
    except Exception as error:
        raise RewardError(f"Cannot read '{path}': {error}. Download it again.") from error


def load_strict(
    module: nn.Module, tensors: Mapping[str, Tensor], rename: Callable[[str], str | None]
) -> None:
    """Load a checkpoint into a module; every tensor must find its place and every place its tensor.

    Args:
        module: receives the tensors, cast to its own dtypes.
        tensors: the checkpoint.
        rename: from a checkpoint key to the module's key, or None to leave a tensor out knowingly.

    Raises:
        RewardError: keys or shapes do not match; the message counts and names them.
    """
    renamed = {new: value for key, value in tensors.items() if (new := rename(key)) is not None}
    expected = module.state_dict()
    missing, unknown = expected.keys() - renamed.keys(), renamed.keys() - expected.keys()
    wrong = {k for k in expected.keys() & renamed.keys() if expected[k].shape != renamed[k].shape}
    if missing or unknown or wrong:
        raise RewardError(
            f"The checkpoint does not fit {type(module).__name__}: {len(missing)} keys missing "
            f"{sorted(missing)[:3]}, {len(unknown)} unknown {sorted(unknown)[:3]}, {len(wrong)} of "
            f"another shape {sorted(wrong)[:3]}. Use the checkpoint this reward names."
        )
    module.load_state_dict(renamed, strict=True)
