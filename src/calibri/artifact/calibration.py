"""The artifact: what a search found, for which model, and how well it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    FiniteFloat,
    JsonValue,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from calibri.artifact import folder_format as files
from calibri.artifact import hub
from calibri.artifact.folder_format import FORMAT_VERSION
from calibri.artifact.source import calibration_folder
from calibri.coefficients import Coefficients
from calibri.errors import CalibrationError
from calibri.results import Evaluation, Record


class Sampling(Record):
    """The sampling settings a calibration was searched for; it is at its best with these.

    Attributes:
        true_cfg_scale: classifier-free guidance of the pipelines that call it so.
        negative_prompt: prompt of the unconditional branch; empty without guidance.
        height: image height in pixels, or None for the pipeline's own.
        width: image width in pixels, or None for the pipeline's own.
        num_frames: of a video, or None for the pipeline's own.
        dtype: dtype of the transformer, for example ``"bfloat16"``.
    """

    num_inference_steps: PositiveInt
    guidance_scale: FiniteFloat
    true_cfg_scale: FiniteFloat = 1.0
    negative_prompt: str = ""
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    num_frames: PositiveInt | None = None
    dtype: str

    @model_serializer(mode="wrap")
    def _without_an_empty_text(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an empty negative prompt, which versions before it was a field can read."""
        fields: dict[str, Any] = serialise(self)
        if not self.negative_prompt:
            fields.pop("negative_prompt", None)
        return fields


class Calibration(Record):
    """Coefficients of one transformer with everything needed to use and judge them.

    Attributes:
        transformer_class: class name of the transformer, ``"SD3Transformer2DModel"``.
        base_model: repository or folder of the pipeline.
        base_revision: commit of the pipeline's repository, or None when it is not known.
        lora: the LoRA that it was made on top of, a folder or repository; None for none. Its file
            is ``provenance["lora_digest"]``, of SHA-256.
        rewards: reward name to variant; the first is the objective.
        reward_options: reward name to the arguments it was made with, none of them secret
            (``calibri.rewards.stored_options``).
        objective: name of the reward that was maximised.
        format_version: 2; files of version 1, without factors on guidance and shift, are read too.
        provenance: how it was made: seed, generations, population, command and so on.
        evaluation: held-out figures, or None when the calibration was not evaluated.
    """

    format_version: Literal[1, 2] = FORMAT_VERSION
    calibri_version: str
    transformer_class: str
    base_model: str
    base_revision: str | None = None
    lora: str | None = None
    coefficients: Coefficients
    sampling: Sampling
    rewards: dict[str, str] = Field(min_length=1)
    reward_options: dict[str, dict[str, JsonValue]] = {}
    objective: str
    provenance: dict[str, str | int | FiniteFloat]
    evaluation: Evaluation | None = None

    @model_serializer(mode="wrap")
    def _without_no_lora(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out that there is no LoRA, which versions before it was a field can read."""
        fields: dict[str, Any] = serialise(self)
        if self.lora is None:
            fields.pop("lora", None)
        return fields

    @model_validator(mode="after")
    def _check(self) -> Calibration:
        problem = next(self._problems(), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        if next(iter(self.rewards)) != self.objective:
            yield f"the objective '{self.objective}' is not the first of the rewards"
        yield from self.coefficients.problems()

    def __repr__(self) -> str:
        """What it is for and how to sample with it; ``coefficients`` has the numbers."""
        sampling = self.sampling
        guidance = {"guidance_scale": sampling.guidance_scale}
        if sampling.true_cfg_scale != 1.0:
            guidance["true_cfg_scale"] = sampling.true_cfg_scale
        settings = {"num_inference_steps": sampling.num_inference_steps, **guidance}
        shown = ", ".join(f"{name}={value}" for name, value in settings.items())
        model = self.base_model if self.lora is None else f"{self.base_model} with {self.lora}"
        return f"<Calibration of {model} ({self.transformer_class}): {shown}>"

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``calibri.json``, ``calibri.safetensors`` and the model card ``README.md``.

        The JSON file is written last and must agree with the tensors, so that a folder that was
        only half written does not load.

        Returns:
            The folder.

        Raises:
            CalibrationError: the folder cannot be written, or a number is not finite.
        """
        target = Path(folder)
        # What a person passes to ``load``. An absolute path is no one else's business.
        source = target.name if target.is_absolute() else target.as_posix()
        files.write_folder(target, self._contents(source=source))
        return target

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str | None = None,
        local_files_only: bool = False,
    ) -> Calibration:
        """Load a calibration from a folder, or from a repository of the Hugging Face Hub.

        Only the JSON and the safetensors file are opened.

        Args:
            path_or_repo_id: a folder, that of a finished run, or ``"user/repo"``.
            revision: branch, tag or commit of the repository.
            token: access token of the hub; None takes the one that is logged in.
            subfolder: folder below the path or inside the repository.
            local_files_only: use what was downloaded before and stay offline.

        Raises:
            RunError: it is a run that is not finished.
            CalibrationError: nothing is there, or the files are damaged, too large, of a format
                this version does not know, or disagree with each other.
        """
        inner = files.checked_subfolder(subfolder)
        root = calibration_folder(path_or_repo_id)
        folder = root / inner
        if not root.is_dir():
            folder = hub.download(
                str(path_or_repo_id),
                revision=revision,
                token=token,
                subfolder=inner or None,
                local_files_only=local_files_only,
            )
        data = files.read_json(folder / files.JSON_NAME)
        calibration = files.validate(cls, data, folder / files.JSON_NAME)
        files.check_tensors(
            folder / files.TENSORS_NAME,
            calibration.coefficients,
            calibration.format_version,
        )
        return calibration

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Add a Calibri calibration",
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the calibration and its card in one commit; create the repository if needed.

        Args:
            repo_id: ``"user/repo"``.
            private: whether a new repository is private; None leaves it to the account.
            token: access token of the hub; None takes the one that is logged in.
            revision: branch to commit to.
            create_pr: open a pull request in place of committing to the branch.

        Returns:
            Address of the commit or of the pull request.

        Raises:
            CalibrationError: the hub refused, or could not be reached.
        """
        return hub.upload(
            repo_id,
            self._contents(source=repo_id),
            private=private,
            token=token,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )

    def _contents(self, source: str) -> dict[str, bytes]:
        from calibri.artifact.card import render_card  # loading needs no templates

        # In the order of writing: the JSON file comes last.
        try:
            return {
                files.TENSORS_NAME: files.tensor_bytes(self.coefficients),
                files.CARD_NAME: render_card(self, source).encode(),
                files.JSON_NAME: files.json_bytes(
                    self.model_copy(update={"format_version": FORMAT_VERSION})
                ),
            }
        except UnicodeEncodeError as error:
            raise CalibrationError(
                f"The calibration was not saved: {error.object!r} is not valid text. "
                "Remove the broken characters."
            ) from error
