"""`python -m epiconv`: what is installed, and the recipes beside plain PyTorch on this machine."""

import argparse
import copy
import gc
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

import epiconv
from epiconv.bench import accuracy
from epiconv.bench.timing import interleave, stopwatch_for
from epiconv.convolution import round_to
from epiconv.recipes import RECIPES, Recipe

try:
    from rich.table import Table

    from epiconv.bench import report
    from epiconv.bench.__main__ import chosen_device
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "rich":
        raise
    sys.exit('python -m epiconv prints with rich, which is missing: pip install "epiconv[cli]"')

_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_VARIANTS: Final = {
    "fp32": torch.contiguous_format,
    "bf16": torch.channels_last,
    "fp16": torch.channels_last,
}
"""The memory format in which each dtype is shown."""

_LAYOUT_NAMES: Final = {torch.contiguous_format: "nchw", torch.channels_last: "channels_last"}


@dataclass(frozen=True)
class RecipeResult:
    """One recipe beside plain PyTorch.

    Attributes:
        recipe, dtype, layout: what ran.
        input: its shape.
        eager_ms, epiconv_ms: medians of interleaved rounds.
        eager_error, epiconv_error: the largest against float64 on `error_images`, relative to the output's
            scale.
        batch_difference: the largest between the two over the whole batch, on the same scale.
        error_images: indices into the batch.
        path, kernel: of the plan.
        ok: whether epiconv's error is at most twice eager's, or TF32's own where the convolution is set to
            it, plus one rounding, and the batch agrees.
    """

    recipe: str
    dtype: str
    layout: str
    input: tuple[int, ...]
    eager_ms: float
    epiconv_ms: float
    eager_error: float
    epiconv_error: float
    batch_difference: float
    error_images: tuple[int, ...]
    path: str
    kernel: str
    ok: bool

    @property
    def ratio(self) -> float:
        """Eager's time / epiconv's: above 1 is faster than eager."""
        return self.eager_ms / self.epiconv_ms


def _rounded_reference(model: Recipe, x: torch.Tensor) -> torch.Tensor:
    """The plain forward in float64, of what the convolution multiplies rounded to TF32."""
    rounded = copy.deepcopy(model).double()
    for part in rounded.modules():
        if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            part.weight.copy_(round_to(part.weight.float(), "tf32"))
    return rounded.reference(round_to(x, "tf32").double())


def run_recipe(
    recipe: type[Recipe], dtype_word: str, device: torch.device, *, reduced: bool, seconds: float
) -> RecipeResult:
    """Checks one recipe against float64 and times it in turns with plain PyTorch.

    Args:
        recipe: one of `epiconv.recipes.RECIPES`.
        dtype_word: fp32 (NCHW), bf16 or fp16 (channels_last).
        device: where.
        reduced: a few small images instead of the full size.
        seconds: to measure for.

    Example:
        >>> run_recipe(RECIPES[0], "fp32", torch.device("cpu"), reduced=True, seconds=1.0).ok
        True
    """
    dtype, memory_format = _DTYPES[dtype_word], _VARIANTS[dtype_word]
    torch.manual_seed(0)
    model = recipe(*recipe.example_init()).eval()
    model = model.to(device=device, dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]
    (x,) = recipe.example_inputs(reduced, device=device, dtype=dtype, memory_format=memory_format)
    images = accuracy.sample_images(x.shape[0])
    with torch.no_grad():
        expected = copy.deepcopy(model).double().reference(x[list(images)].double())
        eager, fused = model.reference(x), model(x)
        eager_error = accuracy.max_error(eager[list(images)], expected)
        error = accuracy.max_error(fused[list(images)], expected)
        difference = accuracy.max_difference(fused, eager)
        plain_error = accuracy.plain_error(
            eager_error, x, lambda: _rounded_reference(model, x[list(images)]), expected
        )
        ok = accuracy.is_accurate(error, plain_error, dtype)
        ok = ok and accuracy.agrees_with_eager(difference, error, plain_error, dtype)
        del expected, eager, fused
        plan = model.explain(x)
        timings = interleave(
            {"eager": lambda: model.reference(x), "epiconv": lambda: model(x)},
            stopwatch_for(device),
            seconds=seconds,
            warm_up=0.5 if device.type == "cuda" else 0.1,
        )
    return RecipeResult(
        recipe=recipe.__name__,
        dtype=dtype_word,
        layout=_LAYOUT_NAMES[memory_format],
        input=tuple(x.shape),
        eager_ms=timings["eager"].seconds * 1e3,
        epiconv_ms=timings["epiconv"].seconds * 1e3,
        eager_error=eager_error,
        epiconv_error=error,
        batch_difference=difference,
        error_images=images,
        path=str(plan.path),
        kernel=str(plan.kernel),
        ok=ok,
    )


def recipe_table(results: Sequence[RecipeResult]) -> Table:
    """The results, a row each.

    Example:
        >>> report.make_console().print(recipe_table(results))
    """
    table = report.plain_table("recipes beside plain PyTorch")
    numbers = ["eager ms", "epiconv ms", "ratio", "eager error", "epiconv error", "ok"]
    report.add_columns(table, ["recipe", "dtype", "layout"], numbers)
    for row in results:
        table.add_row(
            row.recipe,
            row.dtype,
            row.layout,
            report.milliseconds(row.eager_ms),
            report.milliseconds(row.epiconv_ms),
            f"{row.ratio:.2f}",
            f"{row.eager_error:.1e}",
            f"{row.epiconv_error:.1e}",
            "yes" if row.ok else "NO",
        )
    return table


def plan_table(results: Sequence[RecipeResult]) -> Table:
    """What ran, a row for each result.

    Example:
        >>> report.make_console().print(plan_table(results))
    """
    table = report.plain_table("plans")
    report.add_columns(table, ["recipe", "dtype", "path", "kernel"], [])
    for row in results:
        table.add_row(row.recipe, row.dtype, row.path, row.kernel)
    return table


def make_parser() -> argparse.ArgumentParser:
    """The command line.

    Example:
        >>> make_parser().parse_args(["--dtype", "bf16"]).dtype
        ['bf16']
    """
    parser = argparse.ArgumentParser("python -m epiconv", description=__doc__)
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda if there is one)")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=list(_DTYPES),
        default=["fp32", "bf16"],
        help="fp32 in NCHW, bf16 and fp16 in channels_last (default fp32 bf16)",
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time per recipe (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def _as_json(results: Sequence[RecipeResult], device: torch.device, reduced: bool) -> dict[str, Any]:
    rows = [{**asdict(result), "ratio": result.ratio} for result in results]
    environment = report.environment(device)
    return {"schema": report.SCHEMA, "environment": environment, "reduced": reduced, "recipes": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None takes `sys.argv`'s.

    Returns:
        0, or 1 when a recipe is wrong.

    Raises:
        SystemExit: the options cannot be read.

    Example:
        >>> main(["--device", "cpu", "--dtype", "fp32"])
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    console = report.make_console()
    try:
        device = chosen_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # for both: plain PyTorch at its best
    reduced = device.type == "cpu"
    console.print(str(epiconv.info()), markup=False, highlight=False)
    console.print()
    if reduced:
        console.print("on the CPU, at reduced sizes: the results are checked, the times say little")
    results: list[RecipeResult] = []
    cases = [(recipe, dtype_word) for dtype_word in dict.fromkeys(options.dtype) for recipe in RECIPES]
    with report.progress_bar(console) as bar:
        task = bar.add_task("", total=len(cases))
        for recipe, dtype_word in cases:
            bar.update(task, description=f"{recipe.__name__} {dtype_word}")
            results.append(run_recipe(recipe, dtype_word, device, reduced=reduced, seconds=options.seconds))
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            bar.advance(task)
    console.print(recipe_table(results))
    console.print(plan_table(results))
    batch = results[0].input[0]
    images = ", ".join(map(str, results[0].error_images))
    console.print(
        f"error: the largest of images {images} of {batch} against float64, relative to the output's scale; "
        "the whole batch is compared with eager.\n"
        "ok: at most twice eager's error, or TF32's own in float32, plus one rounding of the output. "
        "ratio: eager / epiconv."
    )
    if options.json:
        try:
            report.write_json(options.json, _as_json(results, device, reduced))
        except OSError as error:
            parser.error(str(error))
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
