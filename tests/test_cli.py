"""The command line itself."""

from click.testing import CliRunner

from mergekit_yoyo.cli import main


def test_an_unknown_command_names_the_nearest():
    result = CliRunner().invoke(main, ["evalute", "./model"])
    assert result.exit_code == 2
    assert result.output == "Error: no command evalute. Did you mean evaluate?\n"
