"""`mergekit-yoyo scores`: the statistics against independent ones, the table, the card, errors."""

import csv
import itertools
import json
import math
import random
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard, parse_eval_result_entries
from matplotlib.image import imread
from scipy.stats import fisher_exact, ttest_rel
from scores_fixtures import PUBLISHED, write_result

from mergekit_yoyo.cli import main
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.scores import (
    SEVEN_TASKS,
    build_table,
    compare,
    read_results,
    render_markdown,
    render_png,
    write_card,
)
from mergekit_yoyo.scores.plot import draw_table
from mergekit_yoyo.scores.results import ModelResult, Score
from mergekit_yoyo.scores.road import Stop, draw_road, stop_of
from mergekit_yoyo.scores.statistics import difference, mcnemar, score_stderr

SIZES = dict(zip(SEVEN_TASKS, (1172, 2376, 3270, 10042, 500, 1838, 1267), strict=True))


def scores(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["scores", *map(str, arguments)])


def answers(count: int, right: float, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [float(generator.random() < right) for _ in range(count)]


def flipped(items: list[float], up: int, down: int = 0) -> list[float]:
    """`items` with the first `up` wrong ones right, and the first `down` right ones wrong."""
    wrong = [index for index, item in enumerate(items) if item == 0][:up]
    right = [index for index, item in enumerate(items) if item == 1][:down]
    return [1 - item if index in {*wrong, *right} else item for index, item in enumerate(items)]


def best(table) -> set[tuple[str, str]]:
    """(model, task) of the marked cells."""
    return {
        (row.result.name, task)
        for row in table.rows
        for task, cell in {**row.cells, "mean": row.mean}.items()
        if cell and cell.best
    }


# --- statistics -----------------------------------------------------------------------------------


def test_paired_error_is_that_of_the_mean_difference(tmp_path):
    a = answers(300, 0.6, seed=1)
    b = flipped(a, up=20, down=11)
    results = read_results(
        [write_result(tmp_path / "a", {"boolq": a}), write_result(tmp_path / "b", {"boolq": b})]
    )
    (task,) = compare(*results).tasks
    gaps = np.array(a) - np.array(b)
    assert task.difference.value == pytest.approx(gaps.mean(), abs=1e-12)
    assert task.difference.stderr == pytest.approx(gaps.std(ddof=1) / math.sqrt(300), rel=1e-12)
    assert task.difference.items == 300
    assert (len(task.gained), len(task.lost)) == (11, 20)
    # McNemar's form of the same error, from the counts alone.
    gained, lost, n = 11, 20, 300
    by_counts = math.sqrt((gained + lost - (gained - lost) ** 2 / n) / (n * (n - 1)))
    assert task.difference.stderr == pytest.approx(by_counts, rel=1e-12)


def binomial_tails(gained: int, lost: int) -> Fraction:
    """McNemar's two-sided p, by counting: all splits that are not likelier than the one seen."""
    flipped = gained + lost
    seen = math.comb(flipped, gained)
    ways = sum(w for k in range(flipped + 1) if (w := math.comb(flipped, k)) <= seen)
    return Fraction(ways, 2**flipped)


@pytest.mark.parametrize(
    ("gained", "lost", "known"),
    [
        (0, 0, 1),
        (1, 0, 1),
        (5, 0, Fraction(1, 16)),
        (8, 2, Fraction(7, 64)),
        (7, 7, 1),
        (20, 11, None),
    ],
)
def test_mcnemar_is_the_exact_binomial_tail(gained, lost, known):
    exact = binomial_tails(gained, lost)
    assert known is None or exact == known
    for counts in ((gained, lost), (lost, gained)):
        assert mcnemar(*counts) == pytest.approx(float(exact), rel=1e-12)


def test_p_is_told_per_task_where_items_are_right_or_wrong(tmp_path):
    a = answers(300, 0.6, seed=1)
    b = flipped(a, up=20, down=11)
    c = [item / 2 for item in a]  # half points: no flip of right and wrong
    shades = [*c[:-3], 0.9, 0.9, 0.9]
    for name, own, parts in (("a", a, c), ("b", b, shades)):
        write_result(tmp_path / name, {"boolq": own, "rouge": parts})
    results = read_results([tmp_path])
    told, untold = compare(*results).tasks
    assert told.difference.p_value == pytest.approx(float(binomial_tails(11, 20)), rel=1e-12)
    student = ttest_rel(c, shades).pvalue
    assert untold.difference.p_value == pytest.approx(float(student), rel=1e-9)
    said = scores(tmp_path, "--compare", "a", "b").output
    assert re.search(r"31 \(\+11 -20\)\s+0\.15 *\n", said), said
    assert "McNemar's exact test" in said
    assert "McNemar" not in scores(tmp_path, "--compare", "a", "b", "--tasks", "rouge").output


@pytest.mark.parametrize("change", ["no samples", "other items", "stale samples"])
def test_without_the_same_items_the_error_is_unpaired(tmp_path, change):
    a, b = answers(300, 0.6, seed=1), answers(300, 0.5, seed=2)
    file_a = write_result(tmp_path / "a", {"boolq": a})
    file_b = write_result(tmp_path / "b", {"boolq": b}, samples=change != "no samples")
    if change == "other items":
        (samples,) = (tmp_path / "b").glob("samples*")
        samples.write_text(samples.read_text().replace('"boolq7"', '"another"'))
    if change == "stale samples":  # their mean is not the reported score
        data = json.loads(file_b.read_text())
        data["results"]["boolq"]["acc_norm,none"] = 0.25
        file_b.write_text(json.dumps(data))
    task_a, task_b = (result.tasks["boolq"] for result in read_results([file_a, file_b]))
    gap = difference(task_a, task_b, "acc_norm")
    errors = [np.std(x, ddof=1) / math.sqrt(300) for x in (a, b)]
    assert gap.stderr == pytest.approx(math.hypot(*errors), rel=1e-12)
    assert not gap.paired
    means = np.mean(a), 0.25 if change == "stale samples" else np.mean(b)
    assert gap.value == pytest.approx(means[0] - means[1], abs=1e-12)


def test_pairing_finds_a_lead_that_independence_hides(tmp_path):
    a = answers(400, 0.6, seed=3)
    b = flipped(a, up=6)  # a lead of 0.015: paired error 0.006, unpaired 0.034
    for samples, expected in ((True, {("b", "piqa")}), (False, set())):
        folder = tmp_path / str(samples)
        files = [
            write_result(folder / name, {"piqa": items}, samples=samples)
            for name, items in (("a", a), ("b", b))
        ]
        table = build_table(read_results(files))
        assert best(table) == expected
        assert any(("paired)" if samples else "unpaired") in note for note in table.notes)


@pytest.mark.parametrize("count", [20, 40, 150, 1267])
@pytest.mark.parametrize(("flips", "leads"), [(1, False), (2, False), (5, False), (6, True)])
def test_a_lead_is_one_beyond_95_percent(tmp_path, count, flips, leads):
    """Of flips that all go one way, six are the first with 2 / 2^n < 0.05."""
    a = answers(count, 0.6, seed=count)
    files = [
        write_result(tmp_path / name, {"piqa": items})
        for name, items in (("a", a), ("b", flipped(a, up=flips)))
    ]
    results = read_results(files)
    assert best(build_table(results)) == ({("b", "piqa")} if leads else set())
    assert compare(*results).tasks[0].difference.differs == leads
    said = scores(*files, "--compare", "a", "b").output
    assert f"differ beyond 95 % on {'piqa' if leads else 'no task'}" in said
    assert f"{2 / 2**flips:.2g}" in said


def test_the_best_is_told_apart_from_every_row_and_not_from_the_second_only(tmp_path):
    """The third row is lower than the second, but less surely so: more of its items differ."""
    a = [1.0] * 60 + [0.0] * 60
    second = [0.0] * 8 + a[8:]  # 8 flips, all one way
    third = [0.0] * 29 + [1.0] * 31 + [1.0] * 20 + [0.0] * 40  # 29 lost, 20 gained
    for rows, marked in (({"a": a, "b": second}, True), ({"a": a, "b": second, "c": third}, False)):
        folder = tmp_path / str(len(rows))
        files = [write_result(folder / name, {"piqa": items}) for name, items in rows.items()]
        table = build_table(read_results(files))
        assert best(table) == ({("a", "piqa")} if marked else set())
        p_value = binomial_tails(8, 0) if marked else binomial_tails(29, 20)
        assert table.rows[0].cells["piqa"].lead.p_value == pytest.approx(float(p_value))
        assert f"p: piqa {float(p_value):.2g}" in render_markdown(table)


def test_independent_shares_are_compared_by_fisher_s_exact_test(tmp_path):
    """All of 4 against 1 of 4 is no difference, whatever a normal error says (p 0.003)."""
    files = [
        write_result(tmp_path / name, {"piqa": items}, samples=False)
        for name, items in (("a", [1.0] * 4), ("b", [1.0] + [0.0] * 3))
    ]
    (task,) = compare(*read_results(files)).tasks
    # With 5 right of 8, all splits of them: 4+1 and 1+4 are the outermost.
    ways = [math.comb(4, k) * math.comb(4, 5 - k) for k in range(1, 5)]
    p_value = sum(w for w in ways if w <= ways[-1]) / sum(ways)
    assert task.difference.p_value == pytest.approx(p_value, rel=1e-9)
    assert not task.difference.differs


def mean_p_value(gaps: dict[str, list[float]]) -> float:
    """Of a mean over tasks, by counting: every way in which the flipped items can go."""
    sums = {Fraction(0): Fraction(1)}
    for items in gaps.values():
        flips = sum(gap != 0 for gap in items)
        steps = {Fraction(2 * k - flips, len(items)): math.comb(flips, k) for k in range(flips + 1)}
        added: dict[Fraction, Fraction] = {}
        for (value, ways), (step, own) in itertools.product(sums.items(), steps.items()):
            added[value + step] = added.get(value + step, Fraction(0)) + ways * own / 2**flips
        sums = added
    seen = abs(sum(Fraction(int(sum(items)), len(items)) for items in gaps.values()))
    return float(sum(ways for value, ways in sums.items() if abs(value) >= seen))


def test_mean_and_its_error(tmp_path):
    a = {"boolq": answers(200, 0.7, 1), "piqa": answers(150, 0.5, 2), "own": answers(90, 0.4, 3)}
    b = {task: flipped(items, up=3, down=1) for task, items in a.items()}
    files = [write_result(tmp_path / name, items) for name, items in (("a", a), ("b", b))]
    table = build_table(read_results(files))
    assert [column.task for column in table.columns] == ["boolq", "piqa", "own"]
    for row, items in zip(table.rows, (a, b), strict=True):
        errors = [np.std(x, ddof=1) / math.sqrt(len(x)) for x in items.values()]
        assert row.mean.value == pytest.approx(np.mean([np.mean(x) for x in items.values()]))
        assert row.mean.stderr == pytest.approx(math.sqrt(np.sum(np.square(errors))) / 3)
    assert ("b", "mean") not in best(table)

    # Another 20 items turned right in each task put the mean beyond doubt.
    c = {task: flipped(items, up=20) for task, items in a.items()}
    for rows, other, marked in ((("a", "b"), b, False), (("a", "c"), c, True)):
        write_result(tmp_path / rows[1], other)
        pair = read_results([tmp_path / name for name in rows])
        exact = mean_p_value(
            {task: (np.array(other[task]) - np.array(a[task])).tolist() for task in a}
        )
        lead = build_table(pair).rows[1].mean.lead
        assert lead.p_value == pytest.approx(exact, abs=5e-3)
        assert lead.differs == marked
        assert compare(*pair).mean.p_value == lead.p_value

    # A row without one of the tasks has no mean that compares.
    write_result(tmp_path / "d", {"boolq": answers(200, 0.7, 4)})
    table = build_table(read_results([*files, tmp_path / "d"]))
    assert [row.mean is None for row in table.rows] == [False, False, True]


def test_lower_is_better_where_the_harness_says_so(tmp_path):
    files = [
        write_result(
            tmp_path / name,
            {"wiki": [value + noise / 9 for noise in range(9)]},
            metrics=["word_perplexity"],
            lower_is_better=True,
        )
        for name, value in (("a", 20.0), ("b", 30.0))
    ]
    table = build_table(read_results(files))
    assert best(table) == {("a", "wiki")}
    assert not table.has_mean
    assert "word\\_perplexity (lower is better)" in render_markdown(table)


# --- the published table --------------------------------------------------------------------------


def published() -> dict[str, dict[str, float]]:
    """The numbers of the file, read independently of the package."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in PUBLISHED.read_text().splitlines()
        if line.startswith("|")
    ]
    tasks = rows[0][1:]
    return {row[0]: dict(zip(tasks, map(float, row[1:]), strict=True)) for row in rows[2:]}


def test_published_v4_and_v5_differ_nowhere_beyond_the_error():
    results = {result.name: result for result in read_results([PUBLISHED])}
    assert list(results) == list(published())
    for v4, v5 in itertools.product(
        [name for name in results if name.startswith("V4")],
        [name for name in results if name.startswith("V5")],
    ):
        comparison = compare(results[v4], results[v5])
        assert len(comparison.tasks) == 7
        for task in comparison.tasks:
            name = task.column.task
            p, q, n = published()[v4][name], published()[v5][name], SIZES[name]
            error = math.sqrt(p * (1 - p) / (n - 1) + q * (1 - q) / (n - 1))
            assert task.difference.value == pytest.approx(p - q, abs=1e-12)
            assert task.difference.stderr == pytest.approx(error, rel=1e-12)
            counts = [round(share * n) for share in (p, q)]
            exact = fisher_exact([[count, n - count] for count in counts]).pvalue
            assert task.difference.p_value == pytest.approx(exact, rel=1e-9)
            assert not task.difference.differs
            assert task.gained is None
        assert "differ beyond 95 % on no task" in (scores(PUBLISHED, "--compare", v4, v5).output)


def test_published_table_marks_what_the_numbers_bear_out():
    table = build_table(read_results([PUBLISHED]))
    # The largest lead is 0.008 of hellaswag: less than 1.96 standard errors, as every other.
    for task, size in SIZES.items():
        p, q = sorted((row[task] for row in published().values()), reverse=True)[:2]
        assert p - q < 1.96 * math.sqrt(p * (1 - p) / (size - 1) + q * (1 - q) / (size - 1))
    assert best(table) == set()
    # Of V3 and V5 alone two columns can be told apart, and the mean.
    results = {result.name: result for result in read_results([PUBLISHED])}
    pair = build_table([results["V3-qx86-hi"], results["V5-qx86-hi"]])
    assert best(pair) == {
        ("V5-qx86-hi", "arc_easy"),
        ("V3-qx86-hi", "hellaswag"),
        ("V5-qx86-hi", "mean"),
    }
    for row in table.rows:
        for task, cell in row.cells.items():
            assert cell.stderr == pytest.approx(
                math.sqrt(cell.value * (1 - cell.value) / (SIZES[task] - 1)), rel=1e-12
            )
    text = render_markdown(table)
    assert "setup unknown: metric, chat template, shots, task versions not recorded" in text
    assert "standard errors computed from the number of items" in text
    assert "| V3-qx86-hi | 0.490 ± 0.015 | 0.564 ± 0.010 | 0.877 ± 0.006 | 0.715 ± 0.005 |" in (
        text
    )


def test_computed_errors_are_the_harness_s_own(tmp_path):
    items = answers(1172, 0.53, seed=5)
    (result,) = read_results([write_result(tmp_path / "a", {"arc_challenge": items})])
    reported = result.tasks["arc_challenge"]
    bare = tmp_path / "bare.md"
    bare.write_text(f"| m | arc_challenge |\n|-|-|\n| a | {np.mean(items)} |\n")
    (published_result,) = read_results([bare])
    computed = score_stderr(published_result.tasks["arc_challenge"], "metric?")
    assert computed == pytest.approx(score_stderr(reported, "acc_norm"), rel=1e-12)


def test_errors_are_said_to_be_computed_only_if_they_are_shown(tmp_path):
    def note(result):
        notes = build_table(read_results([result]), metrics={"boolq": "acc"}).notes
        return any("computed" in note for note in notes)

    items = {"boolq": answers(40, 0.5, 1)}
    file = write_result(tmp_path / "a", items, metrics=["acc", "f1"])
    data = json.loads(file.read_text())
    for metric, expected in (("f1", False), ("acc", True)):
        data["results"]["boolq"][f"{metric}_stderr,none"] = "N/A"
        file.write_text(json.dumps(data))
        assert note(file) == expected


def test_a_difference_of_unknown_error_is_unknown(tmp_path):
    files = [
        write_result(
            tmp_path / name,
            {"wiki": [20.0, 30.0], "boolq": [0.0, 1.0]},
            metrics=["bits"],
            samples=False,
        )
        for name in ("a", "b")
    ]
    for file in files:
        data = json.loads(file.read_text())
        data["results"]["wiki"]["bits_stderr,none"] = "N/A"
        file.write_text(json.dumps(data))
    said = scores(*files, "--compare", "a", "b").output
    assert "on no task; unknown on wiki: no standard error" in said
    said = scores(*files, "--compare", "a", "b", "--tasks", "wiki").output
    assert "whether a and b differ is unknown" in said


def test_its_own_markdown_is_read_back(tmp_path):
    quantized = {"config": {"quantization": {"label": "4-bit g64"}}}
    items = {"arc_easy": answers(50, 0.5, 1), "boolq": answers(50, 0.8, 2)}
    files = [write_result(tmp_path / "odd_*|name", items, **quantized)]
    files.append(write_result(tmp_path / "b", {"arc_easy": answers(50, 0.9, 3)}))
    wiki = {"wiki": [24.0, 25.0, 29.0]}
    write_result(tmp_path / "w", wiki, metrics=["word_perplexity"], lower_is_better=True)
    for paths in (files, [tmp_path / "w"]):
        before = build_table(read_results(paths))
        text = render_markdown(before)
        (tmp_path / "t.md").write_text(text)
        after = build_table(read_results([tmp_path / "t.md"]))
        assert after.columns == before.columns
        assert render_markdown(after).split("\n\n")[0] == text.split("\n\n")[0]


def test_a_table_is_read_as_markdown_shows_it(tmp_path):
    file = tmp_path / "t.md"
    file.write_text(
        "# Scores\n\nA | in prose.\n\n"
        "model | boolq<br/>acc | `piqa` | [arc_easy](x)\n"
        ":-- | --: | - | -\n"
        "**[mine](https://x)** | __0.5__ ± 0.1 | — | 0.25*\n"
        "| a\\|b_c_d \\*e\\* | .5 | `0.75` | |\n\n"
        "| model | later |\n|---|---|\n| x | y |\n"
    )
    mine, other = read_results([file])
    assert (mine.name, other.name) == ("mine", "a|b_c_d *e*")
    assert mine.tasks["boolq"].metrics["acc"] == Score(0.5, 0.1)
    assert mine.tasks["arc_easy"].metrics["metric?"].value == 0.25
    assert list(other.tasks) == ["boolq", "piqa"]
    assert other.tasks["piqa"].metrics["metric?"].value == 0.75


@pytest.mark.parametrize("model", [".", "..", "./"])
def test_a_model_run_from_inside_its_folder_has_the_name_of_the_results(tmp_path, model):
    file = write_result(tmp_path / "mine", {"boolq": [0.0, 1.0]}, model_name=model)
    assert read_results([file])[0].name == "mine"


# --- columns, rows, warnings ----------------------------------------------------------------------


def test_the_metric_is_acc_norm_where_every_row_has_it(tmp_path):
    items = {"arc_easy": answers(50, 0.5, 1)}
    both = write_result(tmp_path / "both", items, metrics=["acc", "acc_norm"])
    acc = write_result(tmp_path / "acc", items, metrics=["acc"])
    odd = write_result(tmp_path / "odd", items, metrics=["f1", "exact_match"])
    assert build_table(read_results([both])).columns[0].metric == "acc_norm"
    assert build_table(read_results([both, acc])).columns[0].metric == "acc"
    assert build_table(read_results([both]), metrics={"arc_easy": "acc"}).columns[0].metric == "acc"
    with pytest.raises(
        YoyoError, match=r"arc_easy: no metric.*exact_match, f1.*--metric arc_easy="
    ):
        build_table(read_results([odd]))
    with pytest.raises(
        YoyoError, match=r"acc/results.*arc_easy has no metric acc_norm; it has acc"
    ):
        build_table(read_results([both, acc]), metrics={"arc_easy": "acc_norm"})


def test_filters_are_metrics_of_their_own(tmp_path):
    file = write_result(tmp_path / "a", {"gsm8k": answers(40, 0.5, 1)}, metrics=["exact_match"])
    file.write_text(file.read_text().replace(",none", ",strict-match"))
    (samples,) = (tmp_path / "a").glob("samples*")
    lines = samples.read_text().replace('"filter": "none"', '"filter": "strict-match"')
    loose = lines.replace("strict-match", "flexible").replace(
        '"exact_match": 0.0', '"exact_match": 1.0'
    )
    samples.write_text(lines + loose)
    table = build_table(read_results([file]))
    assert table.columns[0].metric == "exact_match,strict-match"
    pair = read_results([file, write_copy(file, tmp_path / "b")])
    assert compare(*pair).tasks[0].difference.items == 40


def write_copy(file: Path, folder: Path) -> Path:
    folder.mkdir()
    for source in file.parent.iterdir():
        text = source.read_text().replace(str(file.parent), str(folder))
        (folder / source.name).write_text(text)
    return folder / file.name


def test_what_does_not_compare_is_a_warning(tmp_path):
    items = {"boolq": answers(3270, 0.5, 1), "own": answers(20, 0.5, 2)}
    half = {"boolq": items["boolq"][:100], "own": items["own"]}
    files = [
        write_result(tmp_path / "a", items, samples=False),
        write_result(tmp_path / "b", half, samples=False, chat_template="{{ messages }}"),
        write_result(tmp_path / "c", items, samples=False, versions={"boolq": 2.0, "own": 1.0}),
    ]
    table = build_table(read_results([*files, PUBLISHED]), tasks=["boolq", "own"])
    assert list(table.warnings) == [
        "chat template not applied for a, c; applied for b",
        "boolq: task version 1.0 for a, b; 2.0 for c",
        "boolq: items 3270 for a, c, V3-mxfp4, V3-qx86-hi, V4-qx86x-hi, V5-qx86-hi, V5-qx86x-hi; "
        "100 for b",
        "metric, chat template, shots, task versions not recorded for V3-mxfp4, V3-qx86-hi, "
        "V4-qx86x-hi, V5-qx86-hi, V5-qx86x-hi",
    ]
    for text in (render_markdown(table), scores(*files).output):
        assert "Warning" in text
        assert "chat template not applied for a, c; applied for b" in text.replace("\n", " ")
    assert build_table(read_results(files[:1])).warnings == []
    limited = build_table(read_results(files[1:2]))
    assert "boolq: 100 of 3270 items" in limited.notes


def test_a_group_stands_for_its_tasks(tmp_path):
    file = write_result(
        tmp_path / "a",
        {"mmlu": answers(30, 0.5, 1), "mmlu_law": answers(30, 0.5, 2), "alone": answers(9, 0.5, 3)},
        group_subtasks={"mmlu": ["mmlu_law"], "alone": []},
    )
    assert list(read_results([file])[0].tasks) == ["mmlu", "alone"]
    data = json.loads(file.read_text())
    data["results"]["mmlu"] = {"alias": "mmlu"}  # a group without an aggregate
    file.write_text(json.dumps(data))
    assert list(read_results([file])[0].tasks) == ["mmlu_law", "alone"]


def test_runs_of_one_model_are_one_row_and_the_newest_counts(tmp_path):
    items = answers(40, 0.5, 1)
    write_result(tmp_path / "m", {"boolq": items, "piqa": items}, date="2026-01-01", samples=False)
    newer = flipped(items, up=10)
    file = write_result(tmp_path / "m", {"piqa": newer}, date="2026-02-01", samples=False)
    file.write_text(file.read_text().replace("1795000000.0", "1796000000.0"))
    (result,) = read_results([tmp_path])
    assert list(result.tasks) == ["boolq", "piqa"]
    assert result.tasks["piqa"].metrics["acc_norm"].value == np.mean(newer)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("eval_._merged-q4_0.4.13_arc_easy_boolq", "merged-q4"),
        ("eval_mlx-community_Llama_3.1_8B_0.4.9.2_05_boolq", "mlx-community_Llama_3.1_8B"),
        ("mine", "mine"),
    ],
)
def test_bare_files_are_named_after_the_model(tmp_path, file, name):
    entry = {"alias": "boolq", "acc,none": 0.75, "acc_stderr,none": 0.0, "sample_len": 4}
    (tmp_path / file).write_text(json.dumps({"boolq": entry}))
    (result,) = read_results([tmp_path / file])
    assert (result.name, result.chat_template, result.tasks["boolq"].items) == (name, None, 4)


def test_two_models_of_one_name_must_be_told_apart(tmp_path):
    items = {"boolq": answers(40, 0.5, 1)}
    files = [write_result(tmp_path / run / "merged", items) for run in ("v1", "v2")]
    result = scores(*files)
    assert result.exit_code == 2
    assert "are both named merged but differ in their model" in result.output
    assert f"--name {files[1]}=NEW" in result.output
    result = scores(*files, "--name", f"{files[1]}=V2", "--name", "merged=V1")
    assert result.exit_code == 0, result.output
    words = result.output.split()
    assert words.index("V1") < words.index("V2")


# --- output ---------------------------------------------------------------------------------------


def test_csv_has_the_numbers_in_full(tmp_path):
    a = answers(400, 0.6, seed=3)
    for name, items in (("a", a), ("b", flipped(a, up=6))):
        write_result(tmp_path / name, {"piqa": items})
    result = scores(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "t.csv")
    assert result.exit_code == 0, result.output
    with (tmp_path / "t.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["model"], first["task"], first["metric"]) == ("a", "piqa", "acc_norm")
    assert float(first["score"]) == np.mean(a)
    assert float(first["stderr"]) == pytest.approx(np.std(a, ddof=1) / 20, rel=1e-12)
    assert (first["items"], first["best"], second["best"]) == ("400", "0", "1")
    assert (first["p"], float(second["p"])) == ("", 2 / 2**6)


def test_terminal_table_shows_scores_errors_and_marks():
    result = scores(PUBLISHED)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    row = next(number for number, line in enumerate(lines) if "V3-qx86-hi" in line)
    expected = "V3-qx86-hi 0.490 0.564 0.877 0.715 0.428 0.791 0.669 0.648"
    assert " ".join(lines[row].split()) == expected
    assert lines[row + 1].split()[:3] == ["±0.015", "±0.010", "±0.006"]
    assert result.output.count("*") == 1  # the legend: nothing leads beyond 95 %
    one = scores(PUBLISHED, "--tasks", "piqa,boolq").output
    assert "winogrande" not in one
    assert one.index("piqa") < one.index("boolq")


def test_docs_show_what_comes_out():
    page = (PUBLISHED.parent.parent / "docs" / "scores.md").read_text()
    shown = page.split("mergekit-yoyo scores examples/published-scores.md\n")[1]
    block = shown.split("```text\n")[1].split("```")[0]
    printed = [line.rstrip() for line in scores(PUBLISHED).output.splitlines()]
    assert [line.rstrip() for line in block.splitlines()] == printed[1:]  # after an empty line


def test_png_has_a_green_dot_for_the_marked_only(tmp_path):
    a = answers(400, 0.6, seed=3)
    green = {}
    for lead in (0, 6):
        files = [
            write_result(tmp_path / str(lead) / name, {"piqa": items, "boolq": a})
            for name, items in (("a", a), ("b", flipped(a, up=lead)))
        ]
        path = tmp_path / f"{lead}.png"
        path.write_bytes(render_png(build_table(read_results(files))))
        red, greens, blue = (imread(path)[:, :, channel] for channel in range(3))
        assert red.shape[0] > 200
        green[lead] = int(((greens - red > 0.3) & (greens - blue > 0.1)).sum())
    assert green[0] == 0
    assert green[6] > 100


def test_png_has_a_title_intervals_one_scale_and_the_mean_apart():
    figure = draw_table(build_table(read_results([PUBLISHED])))
    assert figure.get_suptitle() == "Benchmark scores"
    *tasks, mean = figure.axes
    names = list(published())
    for axis, (task, size) in zip(tasks, SIZES.items(), strict=True):
        assert axis.get_title() == task
        dots = {line.get_ydata()[0]: line.get_xdata()[0] for line in axis.lines}
        bars = {
            path.vertices[0, 1]: path.vertices[:, 0]
            for bar in axis.collections
            for path in bar.get_paths()
        }
        for place, name in enumerate(names):
            score = published()[name][task]
            reach = 1.96 * math.sqrt(score * (1 - score) / (size - 1))
            assert dots[place] == score
            assert bars[place] == pytest.approx([score - reach, score + reach], abs=1e-5)
            low, high = axis.get_xlim()
            assert low < score - reach
            assert score + reach < high
    spans = [high - low for low, high in (axis.get_xlim() for axis in figure.axes)]
    assert spans == pytest.approx([spans[0]] * 8)
    assert mean.get_title() == "mean"
    figure.canvas.draw()
    left, right = max(axis.get_position().x1 for axis in tasks), mean.get_position().x0
    assert right > left
    assert mean.get_facecolor() != tasks[0].get_facecolor()


def test_metrics_that_are_no_share_have_a_scale_of_their_own(tmp_path):
    for name, value in (("a", 20.0), ("b", 30.0)):
        wiki = {"wiki": [value + noise / 9 for noise in range(9)]}
        write_result(tmp_path / name, wiki, metrics=["word_perplexity"], lower_is_better=True)
        write_result(tmp_path / name, {"piqa": answers(40, 0.5, 1)}, date="2026-11-25T10-00-00")
    table = build_table(read_results([tmp_path]), ["wiki", "piqa"])
    wiki, piqa = (axis.get_xlim() for axis in draw_table(table).axes)
    assert wiki[1] - wiki[0] > 10
    assert piqa[1] - piqa[0] < 1


@pytest.mark.parametrize(
    ("name", "label", "stop"),
    [
        ("V5-qx86x-hi", None, ("V5", "qx86x-hi")),
        ("V3-mxfp4", None, ("V3", "mxfp4")),
        ("Qwen3-30B-A3B-YOYO-V5-qx64-hi-mlx", None, ("Qwen3-30B-A3B-YOYO-V5", "qx64-hi-mlx")),
        ("merged-q8", "8-bit g64", ("merged", "q8")),
        ("merged-4bit", None, ("merged", "4bit")),
        ("model.Q4_K_M", None, ("model", "Q4_K_M")),
        ("V4", "bfloat16", ("V4", "bfloat16")),
        ("V4", None, ("V4", "as published")),
        ("Qwen3-30B-A3B", None, ("Qwen3-30B-A3B", "as published")),
    ],
)
def test_version_and_quantization_are_told_by_the_name(name, label, stop):
    assert stop_of(ModelResult(name, Path(), {}, quantization=label)) == Stop(*stop)


def test_the_road_goes_through_the_published_scores(tmp_path):
    figure = draw_road(build_table(read_results([PUBLISHED])))
    assert figure.get_suptitle() == "The road from V3 to V5"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "mxfp4",
        "qx86-hi",
        "qx86x-hi",
    ]
    easy = figure.axes[1]
    assert [label.get_text() for label in easy.get_xticklabels()] == ["V3", "V4", "V5"]
    segments = [
        (line.get_ydata(), line.get_linestyle())
        for line in easy.lines
        if len(line.get_xdata()) == 2 and line.get_linestyle() != "None"
    ]
    known = {name: row["arc_easy"] for name, row in published().items()}
    # V4 has no qx86-hi: the line passes it over, and says so.
    assert [(list(ys), style) for ys, style in segments] == [
        ([known["V3-qx86-hi"], known["V5-qx86-hi"]], "--"),
        ([known["V4-qx86x-hi"], known["V5-qx86x-hi"]], "-"),
    ]
    points = [list(line.get_ydata()) for line in easy.lines if line.get_linestyle() == "None"]
    assert [known["V3-mxfp4"]] in points
    spans = [high - low for low, high in (axis.get_ylim() for axis in figure.axes)]
    assert spans == pytest.approx([spans[0]] * 8)
    out = tmp_path / "road.png"
    assert scores(PUBLISHED, "--road", out).exit_code == 0
    assert imread(out).shape[0] > 500


def test_the_road_of_results_takes_their_quantization(tmp_path):
    for version, right in (("V1", 0.4), ("V2", 0.6)):
        for label in ("bfloat16", "4-bit g64"):
            name = version if label == "bfloat16" else f"{version}-q4"
            config = {"config": {"quantization": {"label": label}}}
            write_result(tmp_path / name, {"piqa": answers(90, right, 1)}, **config)
    figure = draw_road(build_table(read_results([tmp_path])))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["bfloat16", "q4"]


def test_what_all_versions_are_called_stands_in_the_title(tmp_path):
    file = tmp_path / "t.md"
    names = ("Qwen3-30B-YOYO-V4-q8", "Qwen3-30B-YOYO-V5-q8")
    file.write_text(
        "| m | a | b | c | d | e |\n"
        + "|-" * 6
        + "|\n"
        + "".join(f"| {name} |" + " 0.5 |" * 5 + "\n" for name in names)
    )
    figure = draw_road(build_table(read_results([file])))
    assert figure.get_suptitle() == "Qwen3-30B-YOYO: the road from V4 to V5"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["V4", "V5"]
    lines = [round(axis.get_subplotspec().rowspan.start) for axis in figure.axes]
    assert lines == [0, 0, 0, 1, 1, 0]  # five tasks as three and two, and the mean


CARD = """\
---
license: apache-2.0
model-index:
- name: My merge
  results:
  - task:
      type: text-generation
    dataset:
      type: openai/gsm8k
      name: GSM8K
    metrics:
    - type: exact_match
      value: 0.5
---
# My merge

Words of mine.
"""


def test_card_gets_table_and_metadata_and_keeps_the_rest(tmp_path):
    items = {"arc_easy": answers(2376, 0.6, 1), "own": answers(50, 0.4, 2)}
    model, other = tmp_path / "models" / "mine", tmp_path / "models" / "other"
    local = {"own": {"dataset_path": "json"}}
    files = [
        write_result(tmp_path / "s" / path.name, items, configs=local) for path in (model, other)
    ]
    model.mkdir(parents=True)
    (model / "README.md").write_text(CARD)
    arguments = (*files, "--card", model, "--eval-results")
    assert scores(*arguments).exit_code == 0
    text = (model / "README.md").read_text()
    assert "# My merge\n\nWords of mine.\n" in text
    assert "<!-- mergekit-yoyo:scores -->\n## Benchmark scores\n\n| model | arc\\_easy<br>" in text
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    assert card.data.model_name == "My merge"
    index = {entry.dataset_type: entry for entry in card.data.eval_results}
    assert set(index) == {"openai/gsm8k", "allenai/ai2_arc", "json"}
    easy = index["allenai/ai2_arc"]
    assert easy.metric_value == round(np.mean(items["arc_easy"]), 4)
    assert (easy.metric_type, easy.dataset_config, easy.dataset_split) == (
        "acc_norm",
        "ARC-Easy",
        "test",
    )
    assert easy.dataset_args == {"num_few_shot": 0}

    (file,) = (model / ".eval_results").iterdir()  # `own` has no data set on the Hub
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (file.name, entry.dataset_id, entry.task_id) == (
        "arc_easy.yaml",
        "allenai/ai2_arc",
        "ARC-Easy",
    )
    assert entry.value == easy.metric_value
    error = np.std(items["arc_easy"], ddof=1) / math.sqrt(2376)
    assert entry.notes == (
        f"acc_norm, 0-shot, standard error {error:.4f}, no chat template, lm-eval 0.4.13"
    )

    before = (model / "README.md").read_bytes()
    assert scores(*arguments).exit_code == 0
    assert (model / "README.md").read_bytes() == before
    # New scores take the place of the old ones.
    write_result(tmp_path / "s" / "mine", {"arc_easy": answers(2376, 0.7, 1)})
    assert scores(*arguments[1:], files[0]).exit_code == 0
    index = {
        e.dataset_type: e for e in ModelCard((model / "README.md").read_text()).data.eval_results
    }
    assert index["allenai/ai2_arc"].metric_value == round(np.mean(answers(2376, 0.7, 1)), 4)
    assert len(index) == 3


def test_card_of_a_published_row_has_the_table_but_claims_no_metric(tmp_path):
    folder = tmp_path / "V5-qx86-hi"
    folder.mkdir()
    files = write_card(build_table(read_results([PUBLISHED])), folder, eval_results=True)
    assert files == [folder / "README.md"]
    text = files[0].read_text()
    assert "| V5-qx86-hi | 0.530 ± 0.015 |" in text
    assert "model-index" not in text


def test_a_part_of_a_task_is_not_published_as_its_score(tmp_path):
    model = tmp_path / "mine"
    model.mkdir()
    file = write_result(
        tmp_path / "s" / "mine",
        {"arc_easy": answers(10, 0.6, 1), "boolq": answers(3270, 0.5, 2), "gsm8k": [1.0, 0.0]},
        configs={"gsm8k": {"dataset_path": "openai/gsm8k", "dataset_name": "main"}},
    )
    data = json.loads(file.read_text())
    data["n-samples"]["gsm8k"] = {"original": 1319, "effective": 2}
    file.write_text(json.dumps(data))
    result = scores(file, "--card", model, "--eval-results")
    assert result.exit_code == 0, result.output
    assert "arc_easy: 10 of 2376 items: not in the metadata" in result.output
    assert "gsm8k: 2 of 1319 items: not in the metadata" in result.output
    text = (model / "README.md").read_text()
    assert [entry.dataset_type for entry in ModelCard(text).data.eval_results] == ["aps/super_glue"]
    assert [path.name for path in (model / ".eval_results").iterdir()] == ["boolq.yaml"]
    assert "arc\\_easy: 10 of 2376 items" in text

    # A group is a part if its tasks are, at any depth.
    data["results"]["all"] = data["results"]["gsm8k"]
    data["group_subtasks"] = {"all": ["boolq", "math"], "math": ["gsm8k"]}
    file.write_text(json.dumps(data))
    group = read_results([file])[0].tasks["all"]
    assert (group.items, group.size, group.limited) == (3272, 3270 + 1319, True)


def test_tasks_on_the_same_data_stay_two_results_in_the_metadata(tmp_path):
    model = tmp_path / "mine"
    model.mkdir()
    items = {"gsm8k": [1.0, 0.0, 1.0, 1.0], "gsm8k_cot": [1.0, 0.0, 0.0, 0.0]}
    data = {"dataset_path": "openai/gsm8k", "dataset_name": "main", "test_split": "test"}
    shots = {"n-shot": {"gsm8k": 5, "gsm8k_cot": 8}}
    file = write_result(tmp_path / "s" / "mine", items, configs=dict.fromkeys(items, data), **shots)
    assert scores(file, "--card", model).exit_code == 0
    front_matter = yaml.safe_load((model / "README.md").read_text().split("---")[1])
    (index,) = front_matter["model-index"]
    assert index["name"] == "mine"
    assert index["results"] == [
        {
            "task": {"type": "text-generation", "name": "Text Generation"},
            "dataset": {
                "name": f"{task} ({count}-shot)",
                "type": "openai/gsm8k",
                "config": "main",
                "split": "test",
                "args": {"num_few_shot": count},
            },
            "metrics": [{"type": "acc_norm", "value": value, "name": "acc_norm"}],
        }
        for task, count, value in (("gsm8k", 5, 0.75), ("gsm8k_cot", 8, 0.25))
    ]


def test_local_data_is_said_to_have_no_eval_results(tmp_path):
    model = tmp_path / "mine"
    model.mkdir()
    local = {"own": {"dataset_path": "json"}}
    file = write_result(tmp_path / "s" / "mine", {"own": answers(50, 0.4, 2)}, configs=local)
    result = scores(file, "--card", model, "--eval-results")
    assert "own: its data is not on the Hub: no .eval_results file" in result.output
    assert [path.name for path in model.iterdir()] == ["README.md"]


def test_nothing_is_written_beside_a_refused_file(tmp_path):
    file = write_result(tmp_path / "a", {"piqa": answers(9, 0.5, 1)})
    out = tmp_path / "t.md"
    other = tmp_path / "other"
    other.mkdir()
    for arguments, expected in (
        (("--card", other), "no row of the table is this model"),
        (("--out", "/proc/t.csv"), "/proc/t.csv: cannot be written"),
    ):
        result = scores(file, "--out", out, *arguments)
        assert result.exit_code == 2
        assert expected in result.output
        assert {path.name for path in tmp_path.iterdir()} == {"a", "other"}
    (other / "README.md").write_bytes(b"caf\xe9")
    result = scores(file, "--out", out, "--card", other, "--name", "a=other")
    assert result.exit_code == 2
    assert "README.md: expected a text in UTF-8" in result.output
    assert not out.exists()
    assert f"wrote {out}" in scores(file, "--out", out).output


def test_items_are_written_whole_and_also_if_none_flipped(tmp_path):
    a = answers(60, 0.5, seed=1)
    for name, items in (("a", a), ("b", flipped(a, up=3))):
        write_result(tmp_path / name, {"boolq": items, "piqa": a})
    out = tmp_path / "flips.jsonl"
    arguments = (tmp_path, "--compare", "a", "b", "--items", out)
    result = scores(*arguments, "--tasks", "piqa")
    assert f"wrote {out}" in result.output
    assert out.read_text() == ""
    out.unlink()
    (samples,) = (tmp_path / "b").glob("samples_piqa*")
    samples.unlink()
    result = scores(*arguments)
    assert result.exit_code == 2
    assert "piqa: no samples of the same items in a and b" in result.output
    assert not out.exists()
    lines = scores(*arguments[:4], "--items", "-", "--tasks", "boolq").output.splitlines()
    assert [json.loads(line)["task"] for line in lines if line.startswith("{")] == ["boolq"] * 3


def test_flipped_items_are_written_on_request(tmp_path):
    a = answers(60, 0.5, seed=1)
    for name, items in (("a", a), ("b", flipped(a, up=3, down=2))):
        write_result(tmp_path / name, {"piqa": items})
    out = tmp_path / "flips.jsonl"
    result = scores(tmp_path, "--compare", "a", tmp_path / "b", "--items", out)
    assert result.exit_code == 0, result.output
    assert "5 (+2 -3)" in result.output
    items = [json.loads(line) for line in out.read_text().splitlines()]
    assert [item["doc_id"] for item in items] == [
        number for number in range(60) if a[number] != flipped(a, up=3, down=2)[number]
    ]
    assert items[0]["prompt"] == f"Q{items[0]['doc_id']}"
    assert items[0]["doc"] == {"question": f"piqa {items[0]['doc_id']}"}
    assert all(item["a"]["score"] == a[item["doc_id"]] for item in items)
    assert all(item["b"]["score"] == 1 - a[item["doc_id"]] for item in items)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing.json"], "nothing.json: no such file or folder"),
        (["empty"], "empty: no result file in this folder"),
        (["text.json"], "text.json: cannot be read: not JSON"),
        (["binary.json"], "binary.json: expected a text in UTF-8"),
        (["other.json"], "other.json: not a result file; expected lm-eval's JSON"),
        (["hollow.json"], "hollow.json: no scores in this result file"),
        (["nan.json"], "nan.json: task boolq: acc is nan, not a finite number"),
        (["date.json"], "date.json: date: expected seconds since 1970; got 'today'"),
        (["prose.md"], "prose.md: no table; expected a header"),
        (["percent.md"], "percent.md: a, boolq: expected a fraction such as 0.533; got '53.3'"),
        (["short.md"], "expected 3 cells; got 2"),
        (["a/samples_boolq_2026-11-24T10-00-00.jsonl"], "no result files given"),
        (["a", "--tasks", "bolq"], "no result has a task bolq. Did you mean boolq?"),
        (["a", "--metric", "boolq=f1"], "task boolq has no metric f1; it has acc_norm"),
        (["t.md", "--metric", "boolq=foo"], "no result states the metric of boolq"),
        (["a", "b", "--compare", "a", "b", "--out", "t.md"], "leave out --output, --card and"),
        (["a", "b", "--compare", "a", "b", "--card", "a"], "leave out --output, --card and"),
        (["a", "--metric", "boolq"], "--metric boolq: expected --metric OLD=NEW"),
        (["a", "--name", "b=c"], "--name b=...: no result has that name or path. Did you mean a?"),
        (["a", "--out", "t.xlsx"], "--output t.xlsx: expected one of .md, .csv, .png"),
        (["a", "--out", "nowhere/t.md"], "--output nowhere/t.md: no folder nowhere"),
        (["a", "--card", "nowhere"], "--card nowhere: no such folder"),
        (["a", "--card", "empty"], "no row of the table is this model; expected one named empty"),
        (["a", "--road", "r.png"], "a road needs two versions; got a only. Rows are told apart by"),
        (["a", "b", "--name", "a=v-q4", "--name", "b=v_q4", "--road", "r.png"], "are both version"),
        (["a", "--road", "r.pdf"], "--road r.pdf: expected a .png file"),
        (["a", "b", "--compare", "a", "b", "--road", "r.png"], "leave out --output, --card and"),
        (["a", "--eval-results"], "--eval-results needs --card FOLDER"),
        (["a", "--items", "x"], "--items needs --compare A B"),
        (["a", "--compare", "a", "zz"], "--compare zz: no such row. Did you mean a?"),
        (["a", "b", "--compare", "a", "b"], "a and b share no task: boolq and piqa"),
        (["a", "c", "--compare", "a", "c", "--items", "-"], "boolq: no samples of the same items"),
        (["d", "e"], "samples_boolq_2026-11-24T10-00-00.jsonl, line 2: cannot be read: not JSON"),
    ],
)
def test_bad_input_gives_a_sentence(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    here = Path()
    items = answers(20, 0.5, 1)
    write_result(here / "a", {"boolq": items})
    write_result(here / "b", {"piqa": items})
    write_result(here / "c", {"boolq": items}, samples=False)
    for name in ("d", "e"):
        write_result(here / name, {"boolq": items})
        (samples,) = (here / name).glob("samples*")
        lines = samples.read_text().splitlines()
        samples.write_text("\n".join([lines[0], "{", *lines[2:]]))
    (here / "empty").mkdir()
    for name, text in {
        "text.json": "no",
        "other.json": '{"model_type": "llama"}',
        "hollow.json": '{"results": {}}',
        "nan.json": '{"results": {"boolq": {"acc,none": NaN}}}',
        "date.json": '{"results": {"boolq": {"acc,none": 0.5}}, "date": "today"}',
        "prose.md": "# Title\n\nNo table here.\n",
        "percent.md": "| model | boolq |\n|---|---|\n| a | 53.3 |\n",
        "t.md": "| model | boolq |\n|---|---|\n| a | 0.5 |\n",
        "short.md": "| model | boolq | piqa |\n|---|---|---|\n| a | 0.5 |\n",
    }.items():
        (here / name).write_text(text)
    (here / "binary.json").write_bytes(b"\xff\xfe\x00")
    files = set(here.rglob("*"))
    result = scores(*arguments)
    assert result.exit_code == 2, result.output
    assert expected in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert set(here.rglob("*")) == files
