import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibri import __version__
from calibri.cli import app as app_module
from calibri.cli import guard
from calibri.cli.app import PANELS, app
from calibri.errors import CalibriError, Interrupted, RewardError, RunError


def command_name(function):
    return function.__name__.rstrip("_").replace("_", "-")


FUNCTIONS = [function for group in PANELS.values() for function in group]
COMMANDS = sorted(command_name(function) for function in FUNCTIONS)


def test_every_command_has_its_file_and_is_registered():
    folder = Path(app_module.__file__).parent
    assert {"calibrate", "resume", "evaluate", "generate", "inspect", "fuse", "report"} <= {
        *COMMANDS
    }
    for function in FUNCTIONS:
        assert (folder / f"{function.__name__}.py").is_file()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_help_shows_examples_line_by_line(calibri, function):
    result = calibri(command_name(function), "--help")
    lines = [line.strip() for line in result.stdout.splitlines()]
    documented = [line.strip() for line in function.__doc__.splitlines()]
    examples = [line for line in documented if line.startswith("calibri ")]
    assert result.exit_code == 0
    assert "[cyan]" not in result.stdout
    assert examples
    assert sum(line.startswith("calibri ") for line in lines) == len(examples)
    for example in examples:  # the terminal wraps the end of a long one
        assert example in " ".join(lines)


def test_help_lists_every_command(calibri):
    result = calibri("--help")
    assert result.exit_code == 0
    assert all(f" {name} " in result.stdout for name in COMMANDS)


def test_help_and_version_do_not_import_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from calibri.cli.app import app\n"
        f"for name in {['', *COMMANDS]!r}:\n"
        "    result = CliRunner().invoke(app, [*name.split(), '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
        "assert CliRunner().invoke(app, ['--version']).exit_code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version(calibri):
    assert calibri("--version").stdout == f"calibri {__version__}\n"


def test_the_choices_of_options_are_those_of_the_library():
    from typing import get_args

    from calibri.cli import options
    from calibri.config import Branches, Granularity, RunConfig

    assert get_args(options.GranularityName) == get_args(Granularity)
    assert get_args(options.BranchesName) == get_args(Branches)
    assert get_args(options.DtypeName) == get_args(RunConfig.model_fields["dtype"].annotation)


def test_an_unknown_command_or_option_is_a_usage_error(calibri):
    assert calibri("calibrat").exit_code == 2
    result = calibri("calibrate", "--stepz", "3")
    assert result.exit_code == 2
    assert "--steps" in result.stderr


@pytest.fixture
def failing(monkeypatch, calibri):
    """Run a command whose inside raises, in the surroundings of ``calibri``."""

    def run(error, *flags):
        def fail():
            raise error

        app.command("fail")(guard.guarded(fail))
        monkeypatch.setattr(sys, "argv", ["calibri", "fail", "a run"])
        try:
            return CliRunner().invoke(app, [*flags, "fail"])
        finally:
            app.registered_commands.pop()

    return run


@pytest.mark.parametrize("kind", [CalibriError, RewardError, RunError])
def test_an_error_of_ours_is_its_message_and_its_exit_code(failing, kind):
    message = "It [red]failed[/red] at \x1b[31m'x'.\nDo this next."
    result = failing(kind(message))
    assert result.exit_code == kind.exit_code
    assert result.stderr == "Error: It [red]failed[/red] at \\x1b[31m'x'.\nDo this next.\n"
    assert result.stdout == ""


def test_a_stopped_run_is_no_error(failing):
    result = failing(Interrupted("Stopped. Continue with: calibri resume runs/x"))
    assert (result.exit_code, result.stderr) == (
        130,
        "Stopped. Continue with: calibri resume runs/x\n",
    )
    early = failing(KeyboardInterrupt())
    assert (early.exit_code, early.stderr) == (130, "Stopped.\n")


def test_an_unexpected_error_says_how_to_report_it(failing):
    result = failing(ZeroDivisionError("by [nothing]"))
    assert result.exit_code == guard.UNEXPECTED
    assert result.stderr.splitlines() == [
        "Unexpected error: ZeroDivisionError: by [nothing]",
        "This is a fault of Calibri. Please report it with the traceback that this prints:",
        "  calibri --debug fail 'a run'",
    ]


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), RunError("x")])
def test_debug_shows_the_traceback(failing, error):
    shown, hidden = failing(error, "--debug").stderr, failing(error).stderr
    assert "Traceback" in shown
    assert "in fail" in shown
    assert "Traceback" not in hidden


def test_a_broken_pipe_is_silent():
    calibri = Path(sys.executable).with_name("calibri")
    process = subprocess.Popen(
        [calibri, "calibrate", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert errors == b""
