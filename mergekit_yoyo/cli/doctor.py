"""`mergekit-yoyo doctor`."""

import click

from mergekit_yoyo.doctor import examine


@click.command()
def command() -> None:
    """Say whether mergekit knows yoyo_fusion, with which versions, on which devices."""
    findings = examine()
    for finding in findings:
        click.echo(finding)
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)
