"""`python -m mergekit_yoyo` is the `mergekit-yoyo` command."""

from mergekit_yoyo.cli import main

if __name__ == "__main__":
    main()
