"""Writes one OpenAPI document from the files that protoc-gen-openapiv3 makes, one for each service: `make artifacts`.

The names of fields become those of the contract (`page_size`), which the gateway writes. The path of an update becomes
that of the other calls of the record, because OpenAPI allows no two paths that differ in the name of a parameter only.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

INFO: Final = {"title": "Caseload", "description": "The system of record for therapists, patients and who treats whom."}
SECURITY: Final = {"key": {"type": "http", "scheme": "bearer", "description": "The token of an API key."}}


def contract_name(name: str) -> str:
    """Returns the name of a field, or of a path of fields, as the contract spells it."""
    return re.sub(r"(?<=[a-z0-9])[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def renamed(node: Any) -> Any:
    """Returns the document with the contract's names of properties and parameters."""
    if isinstance(node, list):
        return [renamed(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: renamed(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict):
        result["properties"] = {contract_name(key): renamed(value) for key, value in node["properties"].items()}
    if "in" in node and "name" in node:
        result["name"] = (
            contract_name(node["name"]).rpartition(".")[2] if node["in"] == "path" else contract_name(node["name"])
        )
    return result


def merged(documents: list[dict[str, Any]], version: str) -> dict[str, Any]:
    """Returns one document with the paths, schemas and tags of all."""
    paths: dict[str, Any] = {}
    for document in documents:
        for path, calls in document["paths"].items():
            paths.setdefault(re.sub(r"{(?:\w+\.)?(\w+)}", r"{\1}", path), {}).update(renamed(calls))
    schemas = {
        name: renamed(schema) for document in documents for name, schema in document["components"]["schemas"].items()
    }
    return {
        "openapi": documents[0]["openapi"],
        "info": INFO | {"version": version},
        "security": [{"key": []}],
        "tags": [tag for document in documents for tag in document.get("tags", [])],
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": SECURITY},
    }


def main() -> None:
    """Reads the folder in the first argument; the second is the version of the contract's distribution."""
    documents = [json.loads(file.read_text()) for file in sorted(Path(sys.argv[1]).rglob("*.openapi.json"))]
    json.dump(merged(documents, sys.argv[2]), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
