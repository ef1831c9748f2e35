"""Merges the OpenAPI documents of the services, which protoc-gen-openapiv3 writes, into one. `make artifacts` runs it.

Field names become those of the contract, such as `page_size`, because the gateway writes these. The path of an update
becomes the path of the other calls of the record, because OpenAPI forbids paths that differ only in a parameter name.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

INFO: Final = {"title": "Caseload", "description": "The system of record for therapists, patients and who treats whom."}
SECURITY: Final = {"key": {"type": "http", "scheme": "bearer", "description": "The token of an API key."}}


def contract_name(name: str) -> str:
    """Returns the contract's name of a field, or of a path of fields. Args: name, in camelCase."""
    return re.sub(r"(?<=[a-z0-9])[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def renamed(node: Any) -> Any:
    """Returns the document, in which properties and parameters have the names of the contract."""
    if isinstance(node, list):
        return [renamed(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: renamed(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict):
        result["properties"] = {contract_name(key): renamed(value) for key, value in node["properties"].items()}
    if "in" in node and "name" in node:
        name = contract_name(node["name"])
        result["name"] = name.rpartition(".")[2] if node["in"] == "path" else name
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
    """Prints the document. The first argument is the folder of the documents, and the second is the version."""
    documents = [json.loads(file.read_text()) for file in sorted(Path(sys.argv[1]).rglob("*.openapi.json"))]
    json.dump(merged(documents, sys.argv[2]), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
