"""Which loader `top` looks at when none is named: the only one that runs."""

from protocol.errors import SidestageError
from protocol.folder import living_doors


def only_loader() -> str:
    """The endpoint of this user's one running loader. Raises SidestageError for none or several."""
    doors = [str(door) for door in living_doors()]
    if not doors:
        raise SidestageError(
            "no loader of yours runs here: start one with `sidestage run`, `serve`, `chat` or `loader`, "
            "or name the endpoint of one"
        )
    if len(doors) > 1:
        raise SidestageError(f"{len(doors)} loaders of yours run here, name one: {', '.join(doors)}")
    return doors[0]
