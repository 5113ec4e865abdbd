"""Write ``experiments/README.md`` and its pictures: ``make experiments-report``."""

import argparse

from experiments.page.runs import HERE, decisions, read
from experiments.page.text import page


def main() -> None:
    """Write the page and its pictures."""
    argparse.ArgumentParser("python -m experiments.page", description=__doc__).parse_args()
    for picture in (HERE / "figures").glob("*.png"):
        picture.unlink()
    text = page(figures=HERE / "figures")
    (HERE / "README.md").write_text(text, encoding="utf-8")
    print(f"README.md: {len(decisions(read()))} comparisons of {len(read())} files")


if __name__ == "__main__":
    main()
