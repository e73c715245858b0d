"""run.json is what docs/run.schema.json says, of every kind of script that restores."""

import json
from pathlib import Path

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "run.schema.json").read_text(encoding="utf-8"))
KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}


def faults(value, schema, at="run.json"):
    """Where a value is not what a schema says, as far as this one goes: types, members and what must be there."""
    wanted = schema.get("type", list(KINDS))
    if not isinstance(value, tuple(KINDS[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted))):
        return [f"{at} is {type(value).__name__}"]
    found = []
    if isinstance(value, dict):
        found += [f"{at} has no {name}" for name in schema.get("required", []) if name not in value]
        others = schema.get("additionalProperties", {})
        for name, part in value.items():
            found += faults(part, schema.get("properties", {}).get(name, others), f"{at}.{name}")
    if isinstance(value, list):
        for i, part in enumerate(value):
            found += faults(part, schema.get("items", {}), f"{at}[{i}]")
    return found


def test_run_json_is_what_the_schema_says(run, half_maps, tmp_path, scale_given):
    assert run(*half_maps, "--out", tmp_path / "out", "--steps", 2, "--halves", "--samples", 2) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert faults(record, SCHEMA) == []
    assert record["took"]["seconds"] > 0
    assert record["command"].startswith("denoise.py ")
    # What the schema is to find is found.
    assert faults(record | {"threads": "1"}, SCHEMA) == ["run.json.threads is str"]
    assert faults({k: v for k, v in record.items() if k != "settings"}, SCHEMA) == ["run.json has no settings"]
    assert faults(record | {"doubts": [3]}, SCHEMA) == ["run.json.doubts[0] is int"]
