"""`python -m loadtest URL --rate 20 --duration 30`; --help names the rest."""

from loadtest.command import main

if __name__ == "__main__":
    raise SystemExit(main())
