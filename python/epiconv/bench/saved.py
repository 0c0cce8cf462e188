"""Results with where they were measured: of this run, or read from files that `--json` wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from epiconv.bench.ceilings import Ceilings
from epiconv.bench.report import SCHEMA
from epiconv.bench.results import CaseResult

_WHERE: Final = ("device", "torch", "cuda", "cudnn")


@dataclass(frozen=True)
class Measured:
    """What was measured on one card.

    Attributes:
        environment: of `report.environment`.
        ceilings: of the card.
        results: the cases.
    """

    environment: Mapping[str, Any]
    ceilings: Ceilings
    results: tuple[CaseResult, ...]

    @property
    def where(self) -> str:
        """Card and versions in words."""
        names = {"device": "", "torch": "torch ", "cuda": "CUDA ", "cudnn": "cuDNN "}
        known = [(name, self.environment.get(key)) for key, name in names.items()]
        return ", ".join(f"{name}{value}" for name, value in known if value is not None)


def read_results(paths: Sequence[Path]) -> Measured:
    """Reads one or several files of one card; a case that is in several counts as in the last of them.

    Args:
        paths: at least one, as `--json` wrote them.

    Raises:
        ValueError: one is no such file, or they are from different cards or versions.
        OSError: one cannot be read.

    Example:
        >>> read_results([Path("fp32.json"), Path("bf16.json")]).results[0].problem
    """
    first, *others = [_read(path) for path in paths]
    cases: dict[tuple[str, str, str], CaseResult] = {}
    for path, measured in zip(paths, (first, *others), strict=True):
        for what in _WHERE:
            here, there = measured.environment.get(what), first.environment.get(what)
            if here != there:
                raise ValueError(f"{path} was measured with {what} {here}, {paths[0]} with {there}")
        for result in measured.results:
            cases[result.problem, result.dtype, result.layout] = result
    return Measured(first.environment, first.ceilings, tuple(cases.values()))


def _read(path: Path) -> Measured:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, not {SCHEMA}")
        return Measured(
            content["environment"],
            Ceilings(**content["ceilings"]),
            tuple(CaseResult.from_json(case) for case in content["cases"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} was not written by --json: {error!r}") from None
