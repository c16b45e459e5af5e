"""`python -m gspattern`: the command line."""

from gspattern.cli import main

if __name__ == "__main__":
    main()
