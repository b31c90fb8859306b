"""`mergekit-yoyo doctor`."""

import click

from mergekit_yoyo.doctor import examine


@click.command()
def command() -> None:
    """Say whether mergekit knows yoyo_fusion, with which versions, on which devices."""
    findings = examine()
    for finding in findings:
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.text}")
        if finding.remedy:
            click.echo(f"     {finding.remedy}")
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)
