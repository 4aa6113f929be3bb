"""report.html in a browser: curves, zoom, slider, keyboard, small and dark screens, hostile names."""

import io
import json
import shutil

import pytest
from made_run import COLOURS, EVIL, EVIL_FOLDER, made_run
from PIL import Image

from accel_restore.tracking.report import page as report
from accel_restore.tracking.report.page import Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("made") / EVIL_FOLDER, evil=EVIL)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Return a function that opens a page from disk; `page.log` collects its messages, errors and requests."""
    pages = []

    def open_page(text, **options):
        (tmp_path / "report.html").write_text(text)
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
        pages.append(page)
        page.log = []
        page.on("console", lambda message: page.log.append(message.text))
        page.on("pageerror", lambda error: page.log.append(str(error)))
        page.on("request", lambda request: page.log.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_selector("#chart-loss path.curve", state="attached")
        return page

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture
def page(open_page, folder):
    return open_page(Page(folder).build())


def path_of(page, chart):
    return page.locator(f"#chart-{chart} path.curve").first.get_attribute("d")


def drag(page, selector, start, end):
    """Drag the mouse over an element; `start` and `end` are fractions of its width."""
    page.locator(selector).first.scroll_into_view_if_needed()
    box = page.locator(selector).first.bounding_box()
    height = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], height)
    page.mouse.down()
    page.mouse.move(box["x"] + (start + end) / 2 * box["width"], height)
    page.mouse.move(box["x"] + end * box["width"], height)
    page.mouse.up()


def colour_at(page, part):
    """Return which tile is visible in the first picture, at a fraction of its width."""
    picture = Image.open(io.BytesIO(page.locator(".compare").first.screenshot())).convert("RGB")
    pixel = picture.getpixel((int(part * picture.width), picture.height // 3))
    return min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], pixel, strict=True)))


def test_two_ranks_are_two_curves_without_errors_or_requests(page):
    for chart in ("loss", "lr", "speed", "wait"):
        assert page.locator(f"#chart-{chart} path.curve").count() == 2
    assert page.locator("#chart-grad_norm path.curve").count() == 1  # identical on both ranks
    assert page.locator("#chart-val_psnr .best").count() == 1 and page.locator("#chart-loss .skip").count() == 1
    titles = page.locator("h2").all_inner_texts()
    assert titles[:4] == ["Training", "Validation", "Pictures", "Speed"] and "Plan" in titles and len(titles) == 10
    assert [url[:5] for url in page.log if not url.startswith("data:image/jpeg")] == ["file:"]


def test_close_levels_of_a_chart_have_labels_of_their_own(open_page, tmp_path):
    folder = made_run(tmp_path / "close")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"loss": 1.38629 + line["step"] * 1e-7, "grad_norm": 2e-5 + line["step"] * 1e-11}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = open_page(Page(folder).build())
    for chart in ("loss", "grad_norm", "lr", "val_psnr"):
        labels = page.locator(f"#chart-{chart} text.level").all_text_contents()
        assert len(labels) > 2 and len(set(labels)) == len(labels), labels


def test_a_curve_of_a_single_point_is_a_dot_in_every_chart(open_page, tmp_path):
    folder = made_run(tmp_path / "single", steps=3)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] == 1))
    page = open_page(Page(folder).build())
    for chart in ("loss", "lr", "val_psnr"):
        assert page.locator(f"#chart-{chart} circle").count() >= 1, chart


def test_a_drag_zooms_all_step_charts_and_a_double_click_shows_all(page):
    before = {chart: path_of(page, chart) for chart in ("loss", "lr", "val_psnr")}
    drag(page, "#chart-loss svg", 0.3, 0.6)
    assert path_of(page, "loss") != before["loss"] and path_of(page, "lr") != before["lr"]
    assert path_of(page, "val_psnr") == before["val_psnr"]
    assert page.locator("#chart-lr .reset").is_visible()
    page.locator("#chart-loss svg").dblclick()
    assert {chart: path_of(page, chart) for chart in before} == before
    page.locator("#chart-loss svg").focus()
    page.keyboard.press("+")
    zoomed = path_of(page, "loss")
    page.keyboard.press("ArrowRight")
    assert before["loss"] != zoomed != path_of(page, "loss")
    page.keyboard.press("0")
    assert path_of(page, "loss") == before["loss"]


def test_log_scale_legend_and_readout_respond(page):
    linear = path_of(page, "loss")
    page.locator("#chart-loss .log").click()
    assert path_of(page, "loss") != linear
    page.locator("#chart-loss .legend button", has_text="rank 0").press("Enter")
    for chart in ("loss", "lr"):  # a rank is hidden in all charts
        assert page.locator(f"#chart-{chart} path.curve").get_attribute("data-name") == "rank 1"
    page.locator("#chart-lr svg").hover()
    assert page.locator("#chart-lr .readout").inner_text() in [f"step {step}: rank 1 0.0005" for step in range(25, 35)]


def test_the_slider_follows_mouse_and_keyboard_and_shows_the_selected_tiles(page):
    assert (colour_at(page, 0.3), colour_at(page, 0.7)) == ("input", "output")
    drag(page, ".compare", 0.5, 0.9)
    assert (colour_at(page, 0.7), colour_at(page, 0.95)) == ("input", "output")
    page.locator("input[type=range]").first.focus()
    page.keyboard.press("Home")
    assert colour_at(page, 0.1) == "output"
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert (colour_at(page, 0.2), colour_at(page, 0.4)) == ("input", "output")
    page.locator("#pick-right").select_option("gt")
    page.locator("#pick-left").select_option("1")
    assert (colour_at(page, 0.2), colour_at(page, 0.4)) == ("output", "gt")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_small_and_dark_screens(open_page, folder, scheme):
    page = open_page(Page(folder).build(), viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#chart-loss svg").bounding_box()["width"] > 280
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) > 384) == (scheme == "light")


def test_the_slider_starts_at_the_best_epoch(page):
    assert page.locator("#pick-right").input_value() == "2"
    assert page.locator("#pick-right option", has_text="epoch 2 (best)").count() == 1
    assert page.locator(".compare .right").first.inner_text().startswith("epoch 2 (best): ")


def test_a_table_shows_that_it_scrolls_where_it_is_wider_than_the_screen(open_page, folder):
    small, large = (open_page(Page(folder).build(), viewport={"width": width, "height": 900}) for width in (390, 1280))
    assert large.locator(".hint:visible").count() == 0 and large.locator(".more-right").count() == 0
    card = small.locator(".card", has=small.locator("th", has_text="waiting for data"))
    assert card.locator(".hint").inner_text() == "Scroll sideways to see the rest →"
    assert card.locator(".more-right").count() == 1
    card.locator(".scroll").evaluate("box => box.scrollTo(9999, 0)")
    card.locator(".more-right").wait_for(state="detached")


def test_a_value_is_shown_with_its_unit(page):
    page.locator("#chart-val_psnr svg").hover()
    assert " dB" in page.locator("#chart-val_psnr .readout").inner_text()
    page.locator("#chart-speed svg").hover()
    assert " samples/s" in page.locator("#chart-speed .readout").inner_text()


def test_hostile_names_are_shown_as_text(page):
    assert page.title() == f"{EVIL_FOLDER} · finished"
    assert page.locator("h1").inner_text() == EVIL_FOLDER
    assert page.locator(".compare .right").first.inner_text() == f"epoch 2 (best): {EVIL}output"
    assert EVIL in page.locator("pre").inner_text() and EVIL in page.locator(".error").inner_text()
    assert page.evaluate("document.querySelectorAll('img[onerror]').length") == 0
    assert page.evaluate("window.owned") is None


@pytest.mark.parametrize("policy", [True, False])
def test_control_unescaped_names_enter_the_page_and_only_its_policy_stops_them(browser, folder, policy, monkeypatch):
    monkeypatch.setattr(report, "escape_json", str)
    text = Page(folder).build()
    page = browser.new_page()
    page.set_content(text if policy else text.replace("Content-Security-Policy", "None"))
    page.wait_for_timeout(200)
    assert page.evaluate("document.querySelectorAll('img[onerror]').length") > 0
    assert page.evaluate("window.owned") == (None if policy else 1)
    page.close()
