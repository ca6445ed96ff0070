"""`python -m fusionkit` is the command line, too."""

from fusionkit.cli import main

if __name__ == "__main__":
    main()
