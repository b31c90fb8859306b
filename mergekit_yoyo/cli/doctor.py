"""`mergekit-yoyo doctor`."""

import click

from mergekit_yoyo.cli.command import our_command
from mergekit_yoyo.doctor import examine


@our_command("doctor")
def command() -> None:
    """Say whether mergekit knows yoyo_fusion, with which versions, on which devices.

    \b
    Example:
      mergekit-yoyo doctor
    """
    findings = examine()
    for finding in findings:
        click.echo(finding)
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)
