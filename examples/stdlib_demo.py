"""The set-up and the end of `make demo`; what is between them is an ordinary `prefork map`.

python stdlib_demo.py prepare FOLDER     write the bad inputs, and the list of all inputs
python stdlib_demo.py check FOLDER       sum the results up; exit code 1 if it went otherwise
                                         than it should
"""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

# What a bad input's hook does; how it must fail for it: the error's type, a part of its message.
BAD = {
    "loops_for_ever.py": ("while True:\n        pass", "TimeLimitExceeded", "it ran for more than"),
    "crashes.py": ("import ctypes; ctypes.string_at(0)", "WorkerLostError", "was killed by SIG"),
    "raises.py": ("raise ValueError('I am not to be measured')", "ValueError", "I am not to be"),
}


def prepare(folder: Path) -> None:
    bad = folder / "bad"
    bad.mkdir(parents=True, exist_ok=True)
    for name, (body, _, _) in BAD.items():
        (bad / name).write_text(f"def __measure__():\n    {body}\n")
    paths = [bad / name for name in BAD] + standard_library()
    (folder / "inputs.txt").write_text("".join(f"{path}\n" for path in paths))
    print(f"{len(paths)} inputs: the standard library's modules, and {len(BAD)} bad ones")


def standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    # Debian keeps what was installed later in the same place.
    skipped = {"site-packages", "dist-packages", "__pycache__"}
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in sorted(found) if not skipped & set(path.parts)]


def check(folder: Path) -> bool:
    inputs = (folder / "inputs.txt").read_text().splitlines()
    with open(folder / "results.jsonl", encoding="utf-8") as file:
        records = {record["input"]: record for record in map(json.loads, file)}
    summarise({path: record["result"] for path, record in records.items() if "result" in record})
    print("\nThe bad inputs")
    problems = [f"no result for {path}" for path in inputs if path not in records]
    for name, (_, kind, reason) in BAD.items():
        record = records.pop(str(folder / "bad" / name), {})
        error = record.get("error", {"type": "no error", "message": ""})
        as_expected = error["type"] == kind and reason in error["message"]
        print(f"  {name:20} {error['type']}: {error['message']}")
        if not as_expected:
            problems.append(f"{name} should have failed with {kind}: {reason}")
    problems += [
        f"{path} failed with {record['error']['type']}: {record['error']['message']}"
        for path, record in records.items()
        if "error" in record
    ]
    print()
    for problem in problems:
        print(f"NOT AS IT SHOULD BE: {problem}", file=sys.stderr)
    if not problems:
        print(f"All others came through: {len(records)} modules. As it should be.")
    return not problems


def summarise(results: dict[str, dict[str, Any]]) -> None:
    valid = {path: result for path, result in results.items() if result["valid"]}
    print("\nThe standard library")
    for key in ("lines", "code", "comments", "classes", "functions", "bytecode"):
        label = {"code": "lines of code", "bytecode": "bytes of bytecode"}.get(key, key)
        print(f"  {sum(result[key] for result in valid.values()):>12,} {label}")
    print(f"  {len(results) - len(valid):>12,} files that are no valid Python (test data)")
    print("\nIts most complex functions (branches)")
    for path in sorted(valid, key=lambda path: -valid[path]["worst"])[:5]:
        result = valid[path]
        print(f"  {result['worst']:>12,} {result['worst_function']} in {Path(path).name}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("prepare", "check"):
        sys.exit(__doc__)
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]))
    elif not check(Path(sys.argv[2])):
        sys.exit(1)
