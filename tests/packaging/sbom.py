"""`make sbom`: adds licences to the list that cyclonedx-py makes of the requirements."""

import json
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

_OSI = "License :: OSI Approved :: "
ON_OTHER_PLATFORMS = {"tzdata": "Apache-2.0"}
"""The licences of packages that are not installed here, because only other platforms need them."""


def licences(name: str) -> list[dict[str, Any]]:
    """The licences of a package, as CycloneDX 1.6 has them.

    https://cyclonedx.org/docs/1.6/json/#components_items_licenses
    """
    try:
        known = metadata(name)
    except PackageNotFoundError:
        return [{"expression": ON_OTHER_PLATFORMS[name]}] if name in ON_OTHER_PLATFORMS else []
    if "License-Expression" in known:
        return [{"expression": known["License-Expression"]}]
    if named := [text.removeprefix(_OSI) for text in known.get_all("Classifier", []) if text.startswith(_OSI)]:
        return [{"license": {"name": text}} for text in named]
    first = known["License"].partition("\n")[0] if "License" in known else ""
    return [{"license": {"name": first}}] if first else []


def main(path: Path) -> None:
    """Adds the licences to a file. Args: path, of the file."""
    sbom = json.loads(path.read_text())
    for component in sbom["components"]:
        if found := licences(component["name"]):
            component["licenses"] = found
    path.write_text(json.dumps(sbom, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
