"""Every command has a Python call of the same name, with the same parameters and defaults."""

import inspect
import pydoc
import re
from pathlib import Path

import pytest
import typer

import calibri
from calibri.artifact.calibration import Calibration
from calibri.cli.app import app
from calibri.config import RunConfig, load_config
from calibri.errors import ConfigError, RunError

COMMANDS = {
    name: command
    for name, command in typer.main.get_command(app).commands.items()
    if not hasattr(command, "commands")
}

# What only a terminal needs: how to print, where a picture goes, settings without a flag.
TERMINAL = {
    "as_json",
    "dry_run",  # what it prints is that of `calibri.plan`, `calibri.inspect`, `artifact.preview`
    "enlarge",
    "overrides",
    ("generate", "compare"),  # is a call of its own
    "watch",
    ("fuse", "check"),  # `calibri.artifact.fused_difference`
    ("generate", "output"),  # the call returns the images
    ("plan", "name"),  # taken as calibrate takes it, and counted in no figure
    ("plan", "runs"),
    ("plan", "log"),
    ("inspect", "save"),  # Inspection.discovery.save
}

# An option by a shorter name than its parameter.
PARAMETERS = {
    "config_file": "config",
    "log": "callbacks",
    ("evaluate", "reward"): "rewards",
    ("evaluate", "option"): "reward_options",
    ("extract", "steps"): "num_inference_steps",
    ("generate", "steps"): "num_inference_steps",
}

# Options of `calibrate` and `plan` are keys of the configuration, with values to try.
SETTINGS = {
    "pipeline": ("pipeline", "shapes"),
    "lora": ("lora", "a/repository"),
    "reward": ("rewards.objective", "jpeg-compressibility"),
    "prompts": ("prompts.train", "here.txt"),
    "held_out_prompts": ("prompts.held_out", "there.txt"),
    "granularity": ("space.granularity", "layer"),
    "branches": ("space.branches", "separate"),
    "start": ("space.start", "a/repository"),
    "generations": ("search.generations", 3),
    "steps": ("sampling.num_inference_steps", 5),
    "guidance_scale": ("sampling.guidance_scale", 2.5),
    "seed": ("seed", 11),
    "device": ("device", "cpu"),
    "dtype": ("dtype", "bfloat16"),
    "workers": ("sampling.workers", 2),
}
CONFIGURED = ("calibrate", "plan", "experiment")
ARGUMENTS = {"experiment": ["ablation"]}  # that a command needs before any option


def call_of(command):
    name = command.replace("-", "_")
    return getattr(calibri, f"{name}_" if name == "import" else name)


def options(command):
    return [param for param in COMMANDS[command].params if param.name != "help"]


def declared(table, command, name):
    return table.get((command, name), table.get(name, name))


def is_terminal_only(command, name):
    return name in TERMINAL or (command, name) in TERMINAL


PAIRS = [
    pytest.param(command, param, id=f"{command}-{param.name}")
    for command in COMMANDS
    for param in options(command)
    if not is_terminal_only(command, param.name)
    and not (command in CONFIGURED and param.name in SETTINGS)
]


def test_every_command_has_a_call_with_a_docstring():
    assert {"calibrate", "import", "publish", "serve-reward"} <= COMMANDS.keys()
    for command in COMMANDS:
        assert call_of(command).__doc__, command


@pytest.mark.parametrize(("command", "param"), PAIRS)
def test_an_option_is_a_parameter_with_the_same_default(command, param):
    parameters = inspect.signature(call_of(command)).parameters
    name = declared(PARAMETERS, command, param.name)
    assert name in parameters, list(parameters)
    default = parameters[name].default
    assert param.required == (default is inspect.Parameter.empty)
    assert param.required or param.default == default


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_are_the_first_parameters(command):
    """What needs no flag in the terminal needs no keyword in Python, in the same order."""
    arguments = [p.name for p in options(command) if p.param_type_name == "argument"]
    if command in CONFIGURED:  # their argument is a key of the configuration
        arguments = []
    names = list(inspect.signature(call_of(command)).parameters)
    assert names[: len(arguments)] == arguments


def test_nothing_is_declared_that_is_not_there():
    names = {(command, param.name) for command in COMMANDS for param in options(command)}
    plain = {name for _, name in names}
    for entry in (*TERMINAL, *PARAMETERS, *SETTINGS):
        assert entry in (names if isinstance(entry, tuple) else plain)


@pytest.mark.parametrize("command", CONFIGURED)
def test_an_option_of_a_run_sets_its_key(command, calibri_call, tmp_path):
    """The command hands its call the configuration that the call makes of the same values."""
    for param in options(command):
        if param.name in SETTINGS and not is_terminal_only(command, param.name):
            key, value = SETTINGS[param.name]
            words = [param.opts[0], value] if param.param_type_name == "option" else [value]
            config = calibri_call(command, *words)
            expected = load_config(values={key: value})
            section, _, inner = key.partition(".")
            found = getattr(config, section)
            assert (getattr(found, inner) if inner else found) == value
            assert config.model_dump(exclude={"rewards"}) == expected.model_dump(
                exclude={"rewards"}
            )


@pytest.mark.parametrize("command", CONFIGURED)
def test_without_options_the_configuration_is_the_default(command, calibri_call):
    config = calibri_call(command)
    assert config == RunConfig()
    # A flag that was not given must not win over a file.
    assert config.model_fields_set <= {"rewards"}


@pytest.fixture
def calibri_call(monkeypatch, tmp_path):
    """Run a command and return the configuration that reaches its call."""
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)

    def run(command, *words):
        seen = []

        def call(config, **arguments):
            seen.append(config)
            raise KeyboardInterrupt

        monkeypatch.setattr(f"calibri.{command}", call, raising=False)
        CliRunner().invoke(app, [command, *ARGUMENTS.get(command, []), *map(str, words)])
        return seen[0]

    return run


def test_serving_and_publishing_are_where_the_others_are():
    from calibri.artifact.publish import publish
    from calibri.rewards.server.adapter import serve_reward

    assert calibri.publish is publish
    assert calibri.serve_reward is serve_reward


def test_the_docstring_lists_every_call_on_one_screen():
    text = calibri.__doc__
    assert len(text.splitlines()) <= 40
    for command in COMMANDS:
        assert f"{call_of(command).__name__}(" in text
    assert "calibrate(" in pydoc.render_doc(calibri, renderer=pydoc.plaintext)


def test_help_is_two_screens_and_every_name_is_there():
    text = pydoc.render_doc(calibri, renderer=pydoc.plaintext)
    assert len(text.splitlines()) <= 2 * 40
    stub = (Path(calibri.__file__).with_suffix(".pyi")).read_text(encoding="utf-8")
    names = re.findall(r" as (\w+)$", stub, re.MULTILINE)
    assert set(names) <= set(dir(calibri))
    for name in names:
        value = getattr(calibri, name)
        if callable(value):
            assert pydoc.render_doc(value)


def test_the_docstring_is_grouped_as_the_command_line_is():
    text = calibri.__doc__
    panels = dict.fromkeys(command.rich_help_panel for command in COMMANDS.values())
    places = [text.index(f"\n{panel}:\n") for panel in panels]
    assert places == sorted(places)
    for name, command in COMMANDS.items():
        group = text[text.index(f"\n{command.rich_help_panel}:\n") + 1 :].split("\n\n")[0]
        assert f" {call_of(name).__name__}(" in group


def test_publish_takes_a_run_or_a_calibration_and_says_where_it_went(finished_run, hub):
    made = Calibration.from_pretrained(finished_run / "calibration")
    for source, name, private in ((finished_run, "user/a", True), (made, "user/b", False)):
        options = {"private": True} if private else {}  # otherwise as the account has it
        address = calibri.publish(source, name, token=hub.token, **options)
        repository = hub.repositories[name]
        assert address == f"{hub.endpoint}/{name}/commit/{repository.branches['main']}"
        assert repository.private == private
        assert Calibration.from_pretrained(name, token=hub.token) == made


def test_a_run_that_is_not_finished_has_nothing_to_publish(finished_run, tmp_path):
    for name in ("config.json", "journal.jsonl"):
        (tmp_path / name).write_bytes((finished_run / name).read_bytes())
    with pytest.raises(RunError, match="not finished.*calibri resume"):
        calibri.publish(tmp_path, "user/name")


def test_a_run_is_as_good_as_its_calibration(finished_run):
    """In every call that takes a calibration, since they all load it."""
    inner = Calibration.from_pretrained(finished_run / "calibration")
    assert Calibration.from_pretrained(finished_run) == inner
    assert Calibration.from_pretrained(str(finished_run)) == inner


def test_a_misspelt_keyword_is_refused_beside_a_configuration():
    with pytest.raises(ConfigError, match="'sedd'.*mean 'seed'"):
        calibri.calibrate(RunConfig(), sedd=7)
    with pytest.raises(ConfigError, match="'progres'.*mean 'progress'"):
        calibri.calibrate(progres=None)
    with pytest.raises(ConfigError, match="'machin'.*mean 'machine'"):
        calibri.plan(machin="h100")


def test_another_pipeline_needs_prompts_and_a_reward_from_python_too(tmp_path):
    words = "--prompts FILE and --reward NAME .*prompts.train and rewards.objective"
    with pytest.raises(ConfigError, match=words):
        calibri.calibrate(pipeline="some/model", runs=tmp_path / "runs")
    with pytest.raises(ConfigError, match="needs --reward NAME"):
        calibri.calibrate(
            {"pipeline": "some/model"}, prompts={"train": "x.txt"}, runs=tmp_path / "runs"
        )
    assert not (tmp_path / "runs").exists()


def test_judging_another_pipeline_needs_prompts_from_python_too(finished_run):
    with pytest.raises(ConfigError, match="'some/model' needs --prompts"):
        calibri.evaluate(finished_run, pipeline="some/model")


def test_what_is_given_beside_a_configuration_wins():
    beside = calibri.plan(load_config(values={"search.generations": 9, "seed": 3}), seed=4)
    assert beside == calibri.plan(search={"generations": 9}, seed=4)
    assert beside.procedures[1].generations == 9


def test_inspect_looks_at_the_pipeline_of_its_configuration(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("pipeline: no/such-model\nspace: {granularity: block}\n")
    assert calibri.inspect("shapes", config=path).space.granularity == "block"
    with pytest.raises(calibri.CalibriError, match="no/such-model"):
        calibri.inspect(config={"pipeline": str(tmp_path / "no/such-model")})
