"""`python -m mergekit_yoyo` is the `mergekit-yoyo` command."""

from mergekit_yoyo.cli import run

if __name__ == "__main__":
    run()
