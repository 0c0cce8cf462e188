"""The report of layers: results read back, tables, README, and the picture."""

import json
from pathlib import Path

import pytest
import torch
from made_up_results import CARD, made_up, measured

from epiconv.bench import report
from epiconv.bench.__main__ import main
from epiconv.bench.markdown import cases_table, competitors, means_table, replace_table
from epiconv.bench.publish import check_report, in_order, write_report
from epiconv.bench.results import CaseResult, Control
from epiconv.bench.saved import read_results

CPU = torch.device("cpu")
MARKED = "above\n<!-- layers table -->\nof before\n<!-- end of layers table -->\nbelow\n"

FAST = made_up("resnet50-stem-b1", {"eager": 0.4, "compile": 0.2, "convolution": 0.09, "epiconv": 0.1})
SLOW = made_up(
    "vae-3x3-128",
    {"eager": 0.08, "epiconv_repacking": 0.112, "epiconv": 0.1},
    half="measured",
    cold_ms={"eager": 0.1, "epiconv": 0.125},
    network="vae",
    dtype="bf16",
    math="bf16",
    layout="channels_last",
    predicted_us=90.0,
)
FAILED = made_up("vae-3x3-512", {"eager": 0.1}, network="vae", unavailable={"epiconv": "out of luck"})
OTHER = made_up("kb31", {"eager": 1.0, "epiconv": 1.0}, half="")


def cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table, by rows, without the line below its head."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [rows[0], *rows[2:]]


def column(table: str, heading: str) -> list[str]:
    head, *rows = cells(table)
    return [row[head.index(heading)] for row in rows]


def write_results(path, *results, **environment):
    content = report.results_as_json(results, CPU, CARD, {})
    content["environment"] = content["environment"] | environment
    report.write_json(path, content)
    return path


@pytest.mark.parametrize("result", [FAST, SLOW, FAILED, OTHER], ids=lambda result: result.problem)
def test_a_result_is_read_back_as_it_was(result):
    assert CaseResult.from_json(json.loads(json.dumps(result.as_json()))) == result


def test_a_control_is_read_back_as_it_was():
    result = made_up("a", {"eager": 1.0}, control=Control("eager", 1.0, 2.0))
    assert CaseResult.from_json(json.loads(json.dumps(result.as_json()))) == result


def test_a_result_from_before_cold_caches_and_predictions_is_read():
    values = FAST.as_json()
    for row in values["rows"]:
        del row["cold_ms"], row["predicted_us"]
    assert CaseResult.from_json(values) == FAST


def test_files_are_read_together_and_the_last_counts(tmp_path):
    again = made_up("resnet50-stem-b1", {"eager": 0.4, "epiconv": 0.05})
    first = write_results(tmp_path / "first.json", FAST, SLOW)
    second = write_results(tmp_path / "second.json", again, OTHER)
    found = read_results([first, second])
    assert found.results == (again, SLOW, OTHER)
    assert found.ceilings == CARD
    assert found.environment == report.environment(CPU)


def test_files_of_two_cards_are_refused(tmp_path):
    first = write_results(tmp_path / "first.json", FAST)
    second = write_results(tmp_path / "second.json", SLOW, device="another card")
    with pytest.raises(ValueError, match=r"second\.json was measured with device another card"):
        read_results([first, second])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 0}, "schema 0"),
        ({"cases": [{"problem": "a"}]}, "KeyError"),
        ({"cases": [made_up("a", {"eager": 1.0}).as_json() | {"rows": [{"peer": "tvm"}]}]}, "check"),
        ({"ceilings": {}}, "TypeError"),
    ],
)
def test_other_files_are_refused(change, message, tmp_path):
    path = write_results(tmp_path / "out.json", FAST)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"was not written by --json: .*{message}"):
        read_results([path])


def test_a_peer_that_is_not_known_is_refused():
    values = FAST.as_json()
    values["rows"][0]["peer"] = "tvm"
    with pytest.raises(ValueError, match="unknown peer 'tvm'"):
        CaseResult.from_json(values)


def test_where_it_was_measured():
    assert measured(FAST).where == "made-up card, torch 3.0"


def test_means_table():
    both = made_up("b", {"eager": 0.3, "epiconv": 0.1}, dtype="bf16")
    table = means_table([SLOW, both, FAST, OTHER])
    assert cells(table) == [
        ["layout", "half", "dtype", "layers", "bare / epiconv", "best peer / epiconv", "over 5 % slower",
         "best peer / epiconv, cold", "repacking / epiconv"],
        ["NCHW", "tuning", "fp32", "1", "0.90", "2.00", "0", "", ""],
        ["NCHW", "tuning", "bf16", "1", "", "3.00", "0", "", ""],
        ["NCHW", "tuning", "all", "2", "0.90", "2.45", "0", "", ""],
        ["channels_last", "measured", "bf16", "1", "", "0.80", "1", "0.80", "1.12"],
    ]  # fmt: skip
    assert table.splitlines()[1].startswith("| --- | --- | --- | ---: |")


def test_means_table_has_no_columns_for_what_was_not_measured():
    head, row = cells(means_table([FAST]))
    assert head[-1] == "over 5 % slower"
    assert row == ["NCHW", "tuning", "fp32", "1", "0.90", "2.00", "0"]


def test_cases_table():
    assert cells(cases_table([FAST, SLOW, FAILED])) == [
        ["layer", "half", "layout", "dtype", "epiconv's kernel", "eager", "compile", "convolution", "epiconv",
         "best peer / epiconv", "bare / epiconv", "floor / epiconv", "epiconv, cold", "eager, cold",
         "best peer / epiconv, cold", "repacking adds", "predicted / measured"],
        ["resnet50-stem-b1", "tuning", "NCHW", "fp32", "`fprop_made_up`", "400", "200", "90.0", "100",
         "2.00", "0.90", "0.50", "", "", "", "", ""],
        ["**vae-3x3-128**", "measured", "channels_last", "bf16", "`fprop_made_up`", "80.0", "", "", "100",
         "0.80", "", "0.50", "125", "100", "0.80", "12.0", "0.90"],
        ["vae-3x3-512", "tuning", "NCHW", "fp32", "out of luck", "100", "", "", "",
         "", "", "", "", "", "", "", ""],
    ]  # fmt: skip


def test_cases_table_has_no_columns_for_what_was_not_measured():
    (head, _) = cells(cases_table([FAST]))
    assert head[-1] == "floor / epiconv"
    with_prediction = made_up("a", {"epiconv": 0.1}, predicted_us=125.0)
    table = cases_table([FAST, with_prediction])
    assert column(table, "predicted / measured") == ["", "1.25"]


def test_repacking_counts_for_kernels_that_read_packed_weights():
    times = {"epiconv_repacking": 1.5, "epiconv": 1.0}
    assert made_up("a", times).repacking_ms == pytest.approx(0.5)
    other = {"path": "cudnn+epilogue", "kernel": "pass", "why": ""}
    assert made_up("a", times, plan=other).repacking_ms is None
    assert made_up("a", {"epiconv": 1.0}).repacking_ms is None


def test_cold_ratios_are_of_what_was_measured_cold():
    cold = {"eager": 3.0, "compile": 2.0, "convolution": 1.0, "epiconv": 0.5}
    result = made_up("a", dict.fromkeys(cold, 1.0), cold_ms=cold)
    assert (result.cold_peer_ratio, result.cold_bare_ratio) == (4.0, 2.0)
    some = made_up("a", dict.fromkeys(cold, 1.0), cold_ms={"eager": 3.0, "epiconv": 0.5})
    assert (some.cold_peer_ratio, some.cold_bare_ratio) == (6.0, None)
    peers = made_up("a", dict.fromkeys(cold, 1.0), cold_ms={"eager": 3.0})
    assert (peers.cold_peer_ratio, peers.cold_bare_ratio) == (None, None)


def test_competitors_are_those_that_ran():
    assert competitors([FAST, SLOW]) == "eager, compile"
    assert competitors([SLOW]) == "eager"


def test_table_between_markers_is_replaced():
    assert replace_table(MARKED, "new\nlines") == MARKED.replace("of before", "new\nlines")
    for text in ("", MARKED + MARKED, "<!-- end of layers table --> <!-- layers table -->"):
        with pytest.raises(ValueError, match="one <!-- layers table -->"):
            replace_table(text, "new")


def test_readme_has_a_place_for_the_table():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert "\n<!-- layers table -->\nnew\n<!-- end of layers table -->\n" in replace_table(readme, "new")


def test_layers_stand_in_their_order():
    nchw = made_up("vae-3x3-128", {"epiconv": 0.1})
    unknown = made_up("net-of-long-ago", {"epiconv": 0.1})
    assert in_order([unknown, SLOW, nchw, OTHER, FAST]) == (FAST, nchw, SLOW, unknown)


def test_report_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    readme, directory = tmp_path / "README.md", tmp_path / "docs/more"
    readme.write_text(MARKED)
    check_report(directory, readme)
    files = write_report(measured(SLOW, FAST, OTHER), directory, readme)
    assert files == [directory / "layers.md", directory / "layers.png", readme]
    assert files[1].read_bytes().startswith(b"\x89PNG")
    text = files[0].read_text()
    assert "2 layers of 2 networks (made-up card, torch 3.0)" in text
    assert text.index("resnet50-stem-b1") < text.index("**vae-3x3-128**") and "kb31" not in text
    assert "(layers.png)" in text and means_table([FAST, SLOW]) in text and cases_table([FAST, SLOW]) in text
    text = readme.read_text()
    assert text.startswith("above\n<!-- layers table -->\n2 layers") and text.endswith("-->\nbelow\n")
    assert "(docs/more/layers.md)" in text and "(docs/more/layers.png)" in text
    assert means_table([FAST, SLOW]) in text and "fprop_made_up" not in text and "of before" not in text


def test_report_says_what_its_columns_mean(tmp_path):
    pytest.importorskip("matplotlib")
    write_report(measured(FAST), tmp_path, None)
    plain = (tmp_path / "layers.md").read_text()
    write_report(measured(SLOW), tmp_path, None)
    full = (tmp_path / "layers.md").read_text()
    for word in ("Cold:", "Repacking:", "Predicted:"):
        assert word in full and word not in plain


def test_report_needs_layers_and_a_place(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="computed none"):
        write_report(measured(OTHER, FAILED), tmp_path, None)
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    with pytest.raises(ValueError, match=r"README\.md: there must be one"):
        check_report(tmp_path, readme)
    monkeypatch.setattr("epiconv.bench.publish.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"epiconv\[bench\]"):
        check_report(tmp_path, None)


def test_picture_has_a_bar_for_each_ratio():
    picture = pytest.importorskip("epiconv.bench.picture")
    figure = picture.make_figure(measured(FAST, SLOW, FAILED))
    first, second, *rooflines = figure.subfigs[0].axes + figure.subfigs[1].axes
    assert [axes.get_title().splitlines() for axes in (first, second)] == [
        ["fp32, NCHW", "means: 2.00 best peer, 0.90 bare"],
        ["bf16, channels_last", "means: 0.80 best peer"],
    ]
    bars = [[(p.get_x(), p.get_width()) for p in axes.containers[0]] for axes in (first, second)]
    assert bars == [[(1, pytest.approx(1.0))], [(1, pytest.approx(-0.2))]]
    labels = [label.get_text() for label in first.get_yticklabels()]
    assert labels == ["net", "stem-b1", "vae", "3x3-128"]
    assert [[text.get_text().strip() for text in axes.texts] for axes in (first, second)] == [
        ["not measured"], ["not measured"],
    ]  # fmt: skip
    assert [axes.get_title() for axes in rooflines] == ["fp32", "bf16"]
    assert [text.get_text() for text in rooflines[1].texts] == ["800 TFLOP/s in bf16", "4.00 TB/s"]


def test_roofline_is_the_lesser_ceiling():
    picture = pytest.importorskip("epiconv.bench.picture")
    layers = [
        made_up(f"net-{flops}", {"eager": 2.0, "epiconv": 1.0}, flops=flops, bytes=1) for flops in (10, 1000)
    ]
    (axes,) = picture.make_figure(measured(*layers)).subfigs[1].axes
    (roof,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
    # 400 TFLOP/s at 4 TB/s: the knee is at 100 FLOP per byte.
    assert roof.get_xdata() == pytest.approx([10 / 1.5, 100, 1500])
    assert roof.get_ydata() == pytest.approx([40 / 1.5, 400, 400])
    points = sorted(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1)
    assert points == [10, 10, 1000, 1000]


def test_roofline_of_an_unknown_rate_is_of_bytes():
    picture = pytest.importorskip("epiconv.bench.picture")
    layer = made_up("net-a", {"epiconv": 1.0}, flops=1000, bytes=1, math="fp32")
    (axes,) = picture.make_figure(measured(layer)).subfigs[1].axes
    (roof,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert roof.get_ydata() == pytest.approx([4 * x for x in roof.get_xdata()])
    assert [text.get_text() for text in axes.texts] == ["4.00 TB/s"]


def test_lines_of_networks_stand_together():
    picture = pytest.importorskip("epiconv.bench.picture")
    layers = [made_up(name, {}, network=name[0]) for name in ("a-1", "b-1", "a-2")]
    assert picture.line_places(layers) == {"a": 0, "a-1": 1, "a-2": 2, "b": 3, "b-1": 4}


def test_one_command_measures_and_reports(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    readme, saved = tmp_path / "README.md", tmp_path / "out.json"
    readme.write_text(MARKED)
    run = ["--device", "cpu", "--seconds", "0", "--dtypes", "fp32", "--layouts", "nchw", "--repacking"]
    out = ["--json", str(saved), "--report", str(tmp_path), "--readme", str(readme)]
    assert main([*run, "--problems", "efficientnet-head,yolo-3x3-256", *out]) == 0
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    table = (tmp_path / "layers.md").read_text().split("\n\n")[-1]
    # A layer slower than its best peer, which depends on this machine's moment, is in bold.
    assert [name.strip("*") for name in column(table, "layer")] == ["efficientnet-head", "yolo-3x3-256"]
    assert all(float(time) > 0 for time in column(table, "epiconv"))
    assert f"wrote {readme}" in capsys.readouterr().out
    # The same from the file, as on a machine without the card.
    readme.write_text(MARKED)
    assert main(["--load", str(saved), *out[2:]]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    rows = json.loads(saved.read_text())["cases"][0]["rows"]
    assert [row["peer"] for row in rows] == ["eager", "epiconv_repacking", "epiconv"]


def test_results_are_saved_after_every_case(tmp_path, monkeypatch):
    counts = []
    write_json = report.write_json

    def count(path, content):
        counts.append(len(content["cases"]))
        write_json(path, content)

    monkeypatch.setattr(report, "write_json", count)
    run = ["--device", "cpu", "--seconds", "0", "--dtypes", "fp32,bf16", "--layouts", "nchw"]
    saved = tmp_path / "out.json"
    assert main([*run, "--shape", "2x4x9x9", "--json", str(saved)]) == 0
    assert counts == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cold"], "--cold flushes the cache of a CUDA device"),
        (["--readme", "README.md"], "--readme goes with --report"),
        (["--problems", "small", "--report", "."], "--report is about layers"),
        (["--load", "/nonexistent"], "/nonexistent"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(arguments, message, capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["--device", "cpu", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
