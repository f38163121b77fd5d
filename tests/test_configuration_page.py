"""The page of the configuration shows every key with its default."""

from pathlib import Path

import yaml

from calibri.config import RunConfig, validate_config

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


class Strict(yaml.SafeLoader):
    """A loader that refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(set(keys)) == len(keys), keys
        return super().construct_mapping(node, deep)


def keys(value, prefix=""):
    for name, inner in value.items():
        yield f"{prefix}{name}"
        if isinstance(inner, dict):
            yield from keys(inner, f"{prefix}{name}.")


def test_the_page_shows_every_key_once_with_its_default():
    block = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    shown = Strict(block).get_single_data()
    assert list(keys(shown)) == list(keys(RunConfig().model_dump()))
    assert validate_config(shown) == RunConfig()
