"""`python -m launch`: the command `sidestage` where it runs from its source tree, not installed."""

from launch.cli import main

if __name__ == "__main__":
    main()
