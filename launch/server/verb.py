"""`sidestage serve`: names and options. Imports nothing heavy."""

from typing import Annotated

import typer

from launch.option_groups import cache, compute, conversion, placement, takes
from launch.options import ModelArgument, sentences

WRONG_USAGE = 2


@takes(conversion, compute, cache, placement)
def serve(
    model: ModelArgument = None,
    host: Annotated[
        str, typer.Option(metavar="H", help="Address to listen at; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="P", help="Port to listen at; 0 is a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(metavar="K", help="Clients must send it [default: everybody may ask].")
    ] = None,
    queue: Annotated[
        int, typer.Option(metavar="N", help="Requests that may wait; more are refused with 429.")
    ] = 32,
    batch: Annotated[
        int,
        typer.Option(metavar="N", help="Requests answered at once; above 1 low-order bits may change."),
    ] = 1,
    **given: object,
) -> None:
    """Serve MODEL over HTTP as OpenAI's API does: /v1/chat/completions, /v1/completions, /v1/models.

    Beside it /health and /metrics. The first Ctrl-C lets the answers under way end, the second ends at once.

    Example: sidestage serve --slots 96, and elsewhere
    curl -N localhost:8000/v1/completions -d '{"prompt": "Once upon a time", "stream": true}'
    """
    with sentences():
        from launch.server.extra import check_extra

        check_extra()
        from launch.config import run_config
        from launch.server.config import ServeConfig
        from launch.server.listener import UsageError
        from launch.server.serve import serve_model

        run = run_config({"model": model, **given})
        config = ServeConfig(run=run, host=host, port=port, api_key=api_key, queue=queue, batch=batch)
        try:
            serve_model(config)
        except UsageError as error:
            typer.echo(f"sidestage: {error}", err=True)
            raise typer.Exit(WRONG_USAGE) from None


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: sidestage serve my-store --port 8000 --api-key secret")(serve)
