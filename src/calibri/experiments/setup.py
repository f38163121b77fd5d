"""What an experiment starts from: a configuration with its own defaults, prompts, a session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calibri.config import RunConfig
from calibri.errors import ConfigError, PromptError
from calibri.experiments.kinds import Backbones, Grid, Searches
from calibri.experiments.names import digest
from calibri.pipelines import find_geometry, is_published, lora_of
from calibri.prompts import Prompt, PromptSets, prompt_sets, prompts_from
from calibri.rewards import Mixture
from calibri.runs import Given, Session, settings_of


@dataclass(frozen=True)
class Setup:
    """An experiment before a model is loaded.

    Attributes:
        config: as it was given, with the defaults of the experiment.
        prompts: of searches, or those of a grid, which are all for its figures.
        given: objects.
    """

    config: RunConfig
    prompts: PromptSets
    given: Given

    @classmethod
    def of(cls, config: RunConfig, given: Given, made: Grid | Searches | Backbones) -> Setup:
        """Fill in and check what a caller gave.

        Raises:
            ConfigError: it does not fit an experiment.
            PromptError: there are too few prompts.
        """
        if isinstance(made, Backbones):
            config = with_defaults(config, _published(config.pipeline))
        config = with_defaults(config, made.defaults)
        _check(config)
        of_grid = isinstance(made, Grid)
        sets = PromptSets((), (), _prompts(config)) if of_grid else prompt_sets(config)
        return cls(config, sets, given)

    def session(self) -> Session:
        """Load what it takes."""
        given = self.given
        return Session(self.config, self.prompts, pipe=given.pipe, rewards=given.rewards)


def with_defaults(config: RunConfig, defaults: Mapping[str, Any]) -> RunConfig:
    """Give settings that were not given the values that an experiment wants."""
    update = {}
    for name, wanted in defaults.items():
        section = getattr(config, name)
        if isinstance(wanted, Mapping):
            missing = {k: v for k, v in wanted.items() if k not in section.model_fields_set}
            update[name] = section.model_copy(update=missing)
        elif name not in config.model_fields_set:
            update[name] = wanted
    return config.model_copy(update=update)


def _published(pipeline: str) -> dict[str, Any]:
    """Sampling and space of the paper for a model that it knows, since models differ in them."""
    name = pipeline.rsplit("/", 1)[-1]
    defaults = find_geometry(name).defaults if is_published(name) else {}
    return {section: defaults[section] for section in ("sampling", "space") if section in defaults}


def _prompts(config: RunConfig) -> tuple[Prompt, ...]:
    """Nothing is searched, so that all prompts may be used; the shipped world's are held out."""
    source, count = config.prompts.held_out or config.prompts.train, config.evaluation.num_prompts
    prompts = prompts_from(source, "held_out", count, config.seed)[:count]
    if len(prompts) < 2:
        raise PromptError(f"'{source}' has {len(prompts)} prompts; intervals need at least 2.")
    return prompts


def _check(config: RunConfig) -> None:
    """Refuse what an experiment cannot do with, before a model is loaded."""
    if len(Mixture.of(config.rewards).names) > 1:
        raise ConfigError(
            f"An experiment needs one reward that decides, and '{config.rewards.objective}' is a "
            "mixture. Name a reward first, and others after it."
        )
    if config.space.start is not None:
        raise ConfigError(
            "An experiment starts from the original model, and space.start names another. Leave it "
            "out."
        )


def settings_of_session(session: Session) -> dict[str, object]:
    """Everything that decides the figures: the configuration, and the very prompts."""
    ids = "\n".join(prompt.id for prompt in session.prompts.test)
    lora = lora_of(session.bench.pipe)
    own = {} if lora is None else {"lora.digest": lora.digest}
    return {**settings_of(session.config), "prompts.digest": digest(ids), **own}
