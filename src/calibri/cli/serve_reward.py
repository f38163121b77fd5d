"""``calibri serve-reward``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from calibri.cli.display import loading
from calibri.cli.options import MACHINE
from calibri.cli.quiet import quiet_libraries
from calibri.errors import ConfigError


def serve_reward(
    reward: Annotated[
        str, typer.Argument(metavar="NAME", help="Reward to serve, or PATH.py:NAME of your own.")
    ],
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address; other than loopback it needs a token in CALIBRI_REWARD_TOKEN.",
            rich_help_panel=MACHINE,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: any.", rich_help_panel=MACHINE)
    ] = 8765,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An option of the reward, such as device=cuda or checkpoint=FOLDER. Repeatable.",
        ),
    ] = None,
) -> None:
    """Serve a reward over HTTP, for runs elsewhere; Ctrl-C finishes what waits and stops.

    A run uses it as the reward [bold]remote[/bold]. Set the token in the environment of both, and
    put a proxy with TLS in between where the network is not your own.

        calibri serve-reward hpsv3 --set device=cuda --set dtype=bfloat16
        calibri calibrate --reward remote --set rewards.options.remote.url=http://127.0.0.1:8765
    """
    with loading(f"Loading {reward}"):
        from calibri.rewards import make_reward
        from calibri.rewards import serve_reward as serve

        quiet_libraries()
        made = make_reward(reward, **_options(overrides or []))
    serve(made, host, port)


def _options(overrides: list[str]) -> dict[str, Any]:
    import yaml

    options: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"'{override}' is not of the form key=value, e.g. device=cuda.")
        try:
            options[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"Cannot read the value of --set {override}: {error}") from error
    return options
