"""Writes the SIMULATED lesions that recipe.yaml reads."""

import sys
from pathlib import Path

from fusionkit_skin import SkinConfig, write_example_files

if __name__ == "__main__":
    write_example_files(
        SkinConfig(folder="simulated_lesions", simulated=True), Path(sys.argv[1]), n_lesions=45
    )
