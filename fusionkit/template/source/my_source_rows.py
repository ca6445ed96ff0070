"""Writes the simulated patients that recipe.yaml reads."""

import sys
from pathlib import Path

from fusionkit_my_source import MySourceConfig, write_example_files

if __name__ == "__main__":
    write_example_files(MySourceConfig(), Path(sys.argv[1]), n_patients=24)
