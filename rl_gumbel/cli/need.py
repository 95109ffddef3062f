"""Packages of our extras, asked for before the work that needs them."""

from importlib.util import find_spec

from rl_gumbel.cli.errors import UserError


def need(package: str, extra: str) -> None:
    """Raise a `UserError` that says what to install if a package of an extra is missing."""
    if find_spec(package) is None:
        raise UserError(
            f'the package {package!r} is not installed: pip install "rl-gumbel[{extra}]"'
        )
