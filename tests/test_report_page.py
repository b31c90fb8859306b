"""The page of `report` in a real Chromium: what it draws, sorts, filters, and asks the network."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from chromium import resize, settle
from report_fixtures import header, small_lines, write_record
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from mergekit_yoyo.record.quantities import DISTANCE
from mergekit_yoyo.record.reading import read_record
from mergekit_yoyo.report import (
    compare_records,
    render_comparison_page,
    render_page,
    summarize,
)
from mergekit_yoyo.report.colors import CROSS, DISTANCES, WEIGHT_CHANGES, WEIGHTS
from mergekit_yoyo.report.scales import stretched

pytestmark = pytest.mark.browser
EVIL = "./<script>alert(1)</script><!--"
YAML = f"merge_method: yoyo_fusion\nmodels:\n- model: {EVIL}"
MODELS = ["./experts/code", 'org/<img src=x onerror=alert(1)> & "q"', EVIL]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, the last one broken, with names that would break a careless page."""
    folder = tmp_path_factory.mktemp("page")
    head = header(MODELS, yaml=YAML)
    record = write_record(folder / "r.jsonl", head, small_lines(MODELS, broken=EVIL))
    (folder / "report.html").write_text(render_page(summarize(read_record(record))))
    return folder / "report.html"


@pytest.fixture
def opened(browser: Chrome, page: Path) -> Chrome:
    """The page, freshly opened at 1400 pixels in the light; its logs begin here."""
    resize(browser, 1400)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())
    return browser


def lines_of(page: Path) -> list[dict]:
    return [json.loads(x) for x in (page.parent / "r.jsonl").read_text().splitlines()[1:]]


def find(browser: Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def column(browser: Chrome, number: int) -> list[str]:
    """The text of a column of the table of tensors."""
    script = (
        "return [...document.querySelectorAll('#tensors tr.row')]"
        ".map((row) => row.cells[arguments[0]].innerText)"
    )
    texts = browser.execute_script(script, number)
    return [text.removeprefix(CROSS).strip().split("\n")[0].strip() for text in texts]


def type_into(browser: Chrome, text: str) -> None:
    (field,) = find(browser, "#filters input")
    field.clear()
    field.send_keys(text)


def choose(browser: Chrome, name: str, value: str) -> None:
    (option,) = find(browser, f"#filters select[name={name}] option[value='{value}']")
    option.click()


def expected_color(value: float, stops: list[str]) -> list[int]:
    """Linear interpolation, channel by channel, over evenly spaced stops."""
    channels = np.array([[int(stop[at : at + 2], 16) for at in (1, 3, 5)] for stop in stops])
    places = np.linspace(0, 1, len(stops))
    return [int(np.interp(value, places, channels[:, i]) + 0.5) for i in range(3)]


def rgb(element: WebElement) -> list[int]:
    text = element.value_of_css_property("background-color")
    return [int(number) for number in re.findall(r"\d+", text)[:3]]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_cells_hold_the_colors_of_the_data(opened, page, dark):
    resize(opened, 1400, dark=dark)
    lines = {line["name"]: line for line in lines_of(page)}
    maps = find(opened, ".map")
    assert len(maps) == 3
    inner = {
        "input_layernorm": "input_layernorm.weight",
        "mlp.experts.down_proj": "mlp.experts.down_proj",
        "mlp.experts.gate_up_proj": "mlp.experts.gate_up_proj",
        "self_attn.q_proj": "self_attn.q_proj.weight",
    }
    names = {
        (kind, str(layer)): f"model.layers.{layer}.{end}"
        for kind, end in inner.items()
        for layer in range(3)
    }
    names |= {(kind, "outside"): f"model.{kind}.weight" for kind in ("embed_tokens", "norm")}
    for model, table in enumerate(maps):
        cells = table.find_elements(By.CSS_SELECTOR, "td[data-tip]")
        assert len(cells) == len(names)
        for cell in cells:
            name = names[cell.get_attribute("data-kind"), cell.get_attribute("data-layer")]
            weight = np.mean([row[model] for row in lines[name]["weights"]])
            assert float(cell.get_attribute("data-value")) == pytest.approx(weight, rel=1e-3)
            off = np.subtract(rgb(cell), expected_color(weight, WEIGHTS[dark]))
            assert np.abs(off).max() <= 1, (name, model)
            assert (cell.text == CROSS) == (weight < 0.001)


def test_distances_between_models_are_the_summarys(opened, page):
    summary = summarize(read_record(page.parent / "r.jsonl"))
    rows = [
        [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
        for row in find(opened, "#gaps tbody tr")
    ]
    assert [row[i] for i, row in enumerate(rows[:3])] == ["·"] * 3
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert rows[i][j] == rows[j][i] == f"{100 * summary.gaps[i, j]:.2f} %"
    assert rows[3] == [f"{100 * model.totals[DISTANCE]:.2f} %" for model in summary.models]


def test_the_maps_switch_to_distances(opened, page):
    (button,) = find(opened, "[data-map=distances]")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert find(opened, "[data-map=weights]")[0].get_attribute("aria-pressed") == "false"
    (line,) = [x for x in lines_of(page) if x["name"] == "model.layers.1.self_attn.q_proj.weight"]
    cell = find(opened, ".map[data-model='2'] td[data-kind='self_attn.q_proj'][data-layer='1']")[0]
    expected = line["residual_norms"][0][2] / 64**0.5
    assert float(cell.get_attribute("data-value")) == pytest.approx(expected, rel=1e-3)
    assert cell.text == f"{100 * expected:.1f}".rstrip() or expected >= 0.0995
    # full scale: by the square root, up to unrelated models
    color = expected_color((expected / 2**0.5) ** 0.5, DISTANCES.light)
    assert np.abs(np.subtract(rgb(cell), color)).max() <= 1


def test_colors_are_stretched_on_demand_and_every_legend_says_so(opened, page):
    summary = summarize(read_record(page.parent / "r.jsonl"))
    legends = find(opened, "[data-legend]")
    assert [legend.get_attribute("data-legend") for legend in legends] == [
        *("weights", "gaps", "weights"),
    ]
    assert all("stretched" not in legend.text for legend in legends)
    assert [b.text for b in legends[0].find_elements(By.TAG_NAME, "b")] == ["0", "0.5", "1"]
    assert [b.text for b in legends[1].find_elements(By.TAG_NAME, "b")][-1] == "141 %"
    find(opened, "[data-stretch=true]")[0].click()
    assert all(legend.text.startswith("stretched") for legend in legends)
    scale = stretched(summary.weights.known[summary.weights.known >= 1e-3])
    ticks = [float(b.text) for b in legends[0].find_elements(By.TAG_NAME, "b")]
    assert ticks == pytest.approx(scale.ticks, rel=1e-2)
    for cell in find(opened, ".map td[data-tip]"):
        weight = float(cell.get_attribute("data-value"))
        share = np.clip((weight - scale.low) / (scale.high - scale.low), 0, 1)
        off = np.subtract(rgb(cell), expected_color(share, WEIGHTS.light))
        assert np.abs(off).max() <= 1
    find(opened, "[data-stretch=false]")[0].click()
    assert all("stretched" not in legend.text for legend in legends)


def test_verdict_and_yaml_stand_on_the_page(opened):
    (verdict,) = find(opened, ".verdict")
    assert verdict.text.startswith("The merge follows code and ")
    (summary,) = find(opened, ".yaml summary")
    summary.click()
    assert find(opened, ".yaml pre")[0].text == YAML


def test_rows_above_and_below_the_layers(opened):
    for table in find(opened, ".map"):
        rows = [head.text for head in table.find_elements(By.CSS_SELECTOR, "tbody th")]
        assert rows == [
            "embed_tokens",
            "input_layernorm",
            "self_attn.q_proj",
            "mlp.experts.gate_up_proj",
            "mlp.experts.down_proj",
            "norm",
        ]


def test_the_table_sorts_by_every_column(opened, page):
    names = [line["name"] for line in lines_of(page)]
    assert sorted(column(opened, 0)) == sorted(names)
    assert column(opened, 0)[0] == "model.embed_tokens.weight"
    weights = {x["name"]: np.mean(x["weights"], axis=0) for x in lines_of(page)}
    heads = find(opened, "#tensors thead th")
    assert heads[0].get_attribute("aria-sort") == "ascending"
    for number in (1, 2, 3):
        for direction, sign in (("descending", -1), ("ascending", 1)):
            heads[number].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
            assert heads[number].get_attribute("aria-sort") == direction
            assert [head.get_attribute("aria-sort") for head in heads].count(None) == 6
            shown = [sign * weights[name][number - 1] for name in column(opened, 0)]
            assert np.all(np.diff(shown) >= -1e-3)
            assert shown != sorted(shown, reverse=True)
            texts = [float(text) for text in column(opened, number)]
            assert texts == pytest.approx([sign * value for value in shown], abs=6e-4)
    heads[4].find_element(By.TAG_NAME, "button").click()
    disagreements = [float(text) for text in column(opened, 4)]
    assert disagreements == sorted(disagreements, reverse=True)
    summary = summarize(read_record(page.parent / "r.jsonl"))
    assert column(opened, 0) == [tensor.line.name for tensor in summary.contested]


def test_the_table_filters_and_says_how_many(opened, page):
    names = sorted(line["name"] for line in lines_of(page))
    type_into(opened, "EXPERTS 1.")
    assert column(opened, 0) == [
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.down_proj",
    ]
    assert find(opened, "#count")[0].text == "2 of 14"
    find(opened, "#clear")[0].click()
    assert sorted(column(opened, 0)) == names
    choose(opened, "layer", "2")
    assert len(column(opened, 0)) == 4
    assert all(".layers.2." in name for name in column(opened, 0))
    choose(opened, "layer", "outside")
    assert sorted(column(opened, 0)) == ["model.embed_tokens.weight", "model.norm.weight"]
    choose(opened, "layer", "")
    choose(opened, "rejected", "2")
    rejected = [x["name"] for x in lines_of(page) if min(row[2] for row in x["weights"]) < 1e-3]
    assert 0 < len(rejected) < 14
    assert sorted(column(opened, 0)) == sorted(rejected)
    choose(opened, "rejected", "0")
    assert column(opened, 0) == []


def test_a_packed_tensor_opens_to_its_experts(opened, page):
    type_into(opened, "1.mlp.experts.gate_up_proj")
    (button,) = find(opened, "#tensors tr.row button")
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true"
    (line,) = [x for x in lines_of(page) if x["name"] == "model.layers.1.mlp.experts.gate_up_proj"]
    labels = [span.text for span in find(opened, ".strips > span")]
    assert labels[:2] == ["code gate", "code up"]
    strips = find(opened, ".strip")
    assert len(strips) == 6  # three models, gate and up
    cells = strips[1].find_elements(By.TAG_NAME, "i")  # up of the first model
    assert len(cells) == 4
    for expert, cell in enumerate(cells):
        weight = line["weights"][2 * expert + 1][0]
        tip = cell.get_attribute("data-tip")
        assert tip == f"code, expert {expert} up: {weight:.3f}"
        assert np.abs(np.subtract(rgb(cell), expected_color(weight, WEIGHTS.light))).max() <= 2
    button.click()
    assert find(opened, ".strip") == []


def test_a_map_is_walked_with_the_arrows_and_leads_to_the_table(opened):
    first = find(opened, ".map[data-model='1'] td[tabindex='0']")[0]
    first.send_keys(Keys.ARROW_DOWN)  # from what lies above the layers
    opened.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    opened.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    cell = opened.switch_to.active_element
    place = (cell.get_attribute("data-kind"), cell.get_attribute("data-layer"))
    assert place == ("self_attn.q_proj", "1")
    (tip,) = find(opened, "#tip")
    assert tip.is_displayed()
    assert tip.text.splitlines()[1] == "layer 1 self_attn.q_proj"
    cell.send_keys(Keys.ENTER)
    assert column(opened, 0) == ["model.layers.1.self_attn.q_proj.weight"]


def test_the_pointer_shows_a_tooltip(opened):
    cell = find(opened, ".map[data-model='0'] td[data-kind='norm']")[0]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
    settle(opened)  # the scroll event, which hides tooltips, comes a frame later
    ActionChains(opened).move_to_element(cell).perform()
    (tip,) = find(opened, "#tip")
    assert tip.text.startswith("code\nnorm\nweight 0.")


def test_a_contested_tensor_is_a_click_away(opened, page):
    summary = summarize(read_record(page.parent / "r.jsonl"))
    button = find(opened, ".contested button")[0]
    button.click()
    assert column(opened, 0) == [summary.contested[0].line.name]
    assert len(find(opened, "#tensors .detail")) == 1


def test_names_are_text_whatever_they_hold(opened, page):
    assert [h.text for h in find(opened, ".card h3")] == [
        "code",
        '<img src=x onerror=alert(1)> & "q"',
        "script><!--",
    ]
    assert find(opened, "img") == []
    scripts = [s.get_attribute("type") for s in find(opened, "script")]
    assert scripts == ["application/json", ""]
    titles = [h.get_attribute("title") for h in find(opened, ".card h3")]
    assert titles == MODELS


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_no_sideways_scrolling_no_error_no_request(browser, page, width, dark):
    resize(browser, width, dark=dark)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())
    type_into(browser, "1.mlp.experts.gate_up_proj")
    find(browser, "#tensors tr.row button")[0].send_keys(Keys.ENTER)
    check_fits_and_is_quiet(browser, page, width)
    paper = "rgb(16, 21, 28)" if dark else "rgb(251, 251, 249)"
    body = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert body == paper


def check_fits_and_is_quiet(browser: Chrome, page: Path, width: int) -> None:
    size = browser.execute_script(
        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
    )
    assert size[0] == size[1] <= width
    assert size[1] > width - 20
    assert browser.get_log("browser") == []
    requests = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_readable_on_every_color(opened, dark):
    """Contrast of at least 4.5 (WCAG AA) for text, 3 for the numbers within colored cells."""
    resize(opened, 1400, dark=dark)
    script = """
    return [...document.querySelectorAll("td[data-share], .note, .facts, dt, h2, .switch button")]
      .map((element) => {
        let back = element;
        while (getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)") {
          back = back.parentElement;
        }
        return [getComputedStyle(element).color, getComputedStyle(back).backgroundColor,
          element.tagName];
      });
    """
    found = opened.execute_script(script)
    assert len(found) > 50
    low = [
        (color, back, tag)
        for color, back, tag in found
        if contrast(color, back) < (3 if tag == "TD" else 4.5)
    ]
    assert low == []


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(color: str) -> float:
        shares = np.array([int(n) / 255 for n in re.findall(r"\d+", color)[:3]])
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# --- two merges -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two merges of these models: in B the weights of layer 1 are halved for the first."""
    folder = tmp_path_factory.mktemp("compared")
    lines = small_lines(MODELS)
    halved = [
        line.model_copy(
            update={
                "weights": [
                    [row[0] * (0.5 if ".1." in line.name else 1), *row[1:]] for row in line.weights
                ]
            }
        )
        for line in lines
    ]
    records = [
        read_record(write_record(folder / f"{side}.jsonl", header(MODELS, yaml=yaml), made))
        for side, yaml, made in (("a", YAML, lines), ("b", YAML + "\ndtype: </pre>", halved))
    ]
    page = folder / "changes.html"
    page.write_text(render_comparison_page(compare_records(*records)))
    return page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_changes_have_the_colors_of_the_data(browser, compared, dark):
    resize(browser, 1400, dark=dark)
    browser.get(compared.as_uri())
    sides = [
        {x["name"]: x for x in map(json.loads, text.splitlines()[1:])}
        for text in ((compared.parent / f"{side}.jsonl").read_text() for side in "ab")
    ]
    assert [button.text for button in find(browser, "[data-map]")] == ["weight"]
    (low, zero, high) = [float(b.text) for b in find(browser, "#map-legend b")]
    assert (low, zero) == (-high, 0)
    changed = 0
    for cell in find(browser, ".map[data-model='0'] td[data-tip]"):
        layer, kind = cell.get_attribute("data-layer"), cell.get_attribute("data-kind")
        start = "model." if layer == "outside" else f"model.layers.{layer}."
        (name,) = [x for x in sides[0] if x.startswith(start + kind)]
        a, b = (np.mean([row[0] for row in side[name]["weights"]]) for side in sides)
        assert float(cell.get_attribute("data-value")) == pytest.approx(b - a, rel=1e-3)
        share = (b - a - low) / (high - low)
        off = np.subtract(rgb(cell), expected_color(share, WEIGHT_CHANGES[dark]))
        assert np.abs(off).max() <= 2
        assert f"weight {a:.3f} → {b:.3f}" in cell.get_attribute("data-tip")
        changed += a != b
    assert changed == 4
    assert [span.text for span in find(browser, ".diff .b")] == ["+ dtype: </pre>"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_changes_fit_and_ask_for_nothing(browser, compared, width, dark):
    resize(browser, width, dark=dark)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(compared.as_uri())
    check_fits_and_is_quiet(browser, compared, width)
