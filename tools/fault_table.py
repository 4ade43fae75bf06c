"""What faults between hosts did, from the results of tests/test_hosts_faults.py.

    python -m pytest -m hosts tests/test_hosts_faults.py --junitxml=faults.xml
    python tools/fault_table.py faults.xml --report docs/results/hosts/faults.json

Of several files a later one replaces the cases of those before. Prints a table; `--report` also
writes what it is made of.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

NAME = re.compile(r"test_it_ends_in_bounded_time.*\[(\w+)-(.+)\]")
ENDED = {0: "went on", 2: "one line", 75: "back in the queue"}


@dataclass
class Case:
    """A fault in the middle of a stage."""

    stage: str
    fault: str
    date: str
    codes: dict[str, int]
    """Host -> exit code of what ran there, of a job on its first host; -9 of a lost host."""
    seconds_to_the_end: int
    """From the fault, or from the end of one that passes."""
    seconds_to_the_result: int
    starts: int
    """Of the same command, after the first, until the result was there."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("results", nargs="+", type=Path, help="files of pytest's --junitxml")
    parser.add_argument("--report", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    found = {(case.stage, case.fault): case for file in options.results for case in cases(file)}
    print(table(list(found.values())))
    if options.report:
        rows = [asdict(case) for case in found.values()]
        options.report.write_text(json.dumps(rows, indent=1) + "\n")


def cases(file: Path) -> Iterator[Case]:
    """Those of a file that passed."""
    for suite in ElementTree.parse(file).iter("testsuite"):
        date = suite.attrib["timestamp"][:10]
        for test in suite.iter("testcase"):
            match = NAME.fullmatch(test.attrib["name"])
            if match is None or {each.tag for each in test} & {"failure", "error", "skipped"}:
                continue
            said = {each.attrib["name"]: each.attrib["value"] for each in test.iter("property")}
            yield Case(
                stage=match[1],
                fault=match[2],
                date=date,
                codes={
                    name.removeprefix("code on "): int(value)
                    for name, value in said.items()
                    if name.startswith("code on ")
                },
                seconds_to_the_end=int(said["seconds to the end"]),
                seconds_to_the_result=int(said["seconds to the result"]),
                starts=int(said["tries"]),
            )


def table(found: Sequence[Case]) -> str:
    """In Markdown: a row per fault, a column per stage."""
    stages = list(dict.fromkeys(case.stage for case in found))
    faults = list(dict.fromkeys(case.fault for case in found))
    cells = {(case.fault, case.stage): cell(case) for case in found}
    lines = [["fault", *stages], ["---"] * (len(stages) + 1)]
    lines += [[fault, *(cells.get((fault, stage), "") for stage in stages)] for fault in faults]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(case: Case) -> str:
    """How it ended where its host was not lost, and the seconds to the result."""
    ends = sorted({ENDED.get(code, "lost") for code in case.codes.values()})
    return f"{', '.join(ends)}: {case.seconds_to_the_end}, {case.seconds_to_the_result} s"


if __name__ == "__main__":
    main()
