"""Review sheets in a real Chromium without network: keys, mouse, filters, lists, storage."""

import dataclasses
import json
import time

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.pascal_b.candidates import read_reject_list
from d2_smallobj.report.review import open_review_set, write_review

NUMBER = 120
HOSTILE = ("<script>window.pwned=1</script>", "</script><img src=x onerror='window.pwned=1'>")


def make_candidates(folder, *, names=("bird", "cat"), file_name="{:03d}.jpg", reasons=("overlap",)):
    """Pictures of noise with one to three boxes each; every fifth image is suspicious."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []

    def add(number, category, x, y, side, crowd=0):
        entry = {"id": len(annotations) + 1, "image_id": 1000 + number, "category_id": category}
        outline = [[x, y, x + side, y, x + side, y + side, x, y + side]]
        annotations.append({**entry, "iscrowd": crowd, "segmentation": outline})

    for number in range(NUMBER):
        name = file_name.format(number)
        low = rng.integers(0, 255, (6, 8, 3), np.uint8)
        Image.fromarray(low).resize((160, 120)).save(folder / "images" / name, "JPEG")
        images.append({"id": 1000 + number, "width": 160, "height": 120, "file_name": name})
        if number % 5 == 0:
            images[-1]["suspicion"] = list(reasons)
        for place in range(number % 3 + 1):
            side = 40 if place == 0 and number % 4 == 0 else 12
            add(number, 1 + (number + place) % len(names), 5 + 50 * place, 20, side)
    add(8, 1, 15, 30, 10)
    add(0, 1, 100, 80, 30, crowd=1)
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "candidates.json"
    path.write_text(json.dumps(content))
    return path, folder / "images"


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    """One set as one sheet and as two."""
    folder = tmp_path_factory.mktemp("review")
    review = open_review_set(*make_candidates(folder / "data"))
    in_order = sorted(review.tasks, key=lambda task: task.image_id)
    review = dataclasses.replace(review, tasks=in_order)
    (whole,) = write_review(folder / "whole" / "review.html", review)
    halves = write_review(folder / "halves" / "review.html", review, per_sheet=NUMBER // 2)
    return whole, *halves


@pytest.fixture
def page(browser, sheets):
    """The whole set, without decisions."""
    browser.open(sheets[0])
    browser.run("localStorage.clear()")
    browser.open(sheets[0])
    yield browser
    assert browser.problems() == []
    browser.run("localStorage.clear()")


def press(browser, keys):
    for key in keys:
        browser.key(key, 0)


def text(browser, selector):
    return browser.run(f"document.querySelector('{selector}').textContent.trim()")


def state(browser):
    """Name of the picture, and how many are decided and rejected."""
    numbers = text(browser, "#count").replace(" decided", "").replace(" rejected", "")
    return f"{text(browser, '#name')}: {numbers}"


def choose(browser, selector, value):
    browser.run(
        f"(s => {{s.focus(); s.value = '{value}';"
        " for (const kind of ['input', 'change'])"
        " s.dispatchEvent(new Event(kind, {bubbles: true}))})"
        f"(document.querySelector('{selector}'))"
    )


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def exported(browser, tmp_path):
    """Save the reject list by its key and read the file."""
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    target = tmp_path / "rejected.json"
    target.unlink(missing_ok=True)
    press(browser, "s")
    wait_for(target.exists)
    return json.loads(wait_for(lambda: target.read_text("utf-8")))


def imported(browser, tmp_path, content):
    """Load a reject list through the file dialog's element."""
    path = tmp_path / "list.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    browser.run("document.getElementById('message').textContent = ''")
    element = browser.call("Runtime.evaluate", expression="document.getElementById('import')")
    browser.call("DOM.setFileInputFiles", files=[str(path)], objectId=element["result"]["objectId"])
    return wait_for(lambda: text(browser, "#message"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_loads_without_a_word_and_without_network(browser, sheets, width, scheme):
    browser.open(sheets[1], width=width, scheme=scheme)
    assert browser.problems() == []
    assert browser.requests() == [sheets[1].as_uri()]
    assert browser.run("document.documentElement.scrollWidth") == width
    press(browser, "?r")
    ratio, where = browser.least_contrast()
    assert 4.5 <= ratio < 99, where
    browser.run("localStorage.clear()")


def test_the_picture_and_its_masks_lie_on_each_other(page):
    frame = "(r => [r.x, r.y, r.width, r.height].map(Math.round))({}.getBoundingClientRect())"
    x, y, width, height = page.run(frame.format("document.getElementById('picture')"))
    assert width / height == pytest.approx(4 / 3, abs=0.01)
    scale = width / 160
    # The first object of 40 x 40 pixels at (5, 20), outlined through its border pixels' centres.
    path = page.run(frame.format("document.querySelector('#masks path')"))
    expected = [x + 5.5 * scale, y + 20.5 * scale, 39 * scale, 39 * scale]
    assert path == pytest.approx(expected, abs=0.02 * width)
    assert page.run("document.getElementById('void').getAttribute('d')").startswith("M100.5,80.5")
    assert "striped: ignored" in text(page, "#facts")
    assert text(page, "#objects li") == "birdM1,600 px"
    # Only what is shown is in the page.
    assert page.run("document.querySelectorAll('[id^=image-]').length") == NUMBER
    assert 0 < page.run("document.images.length") < 15
    count = "document.querySelectorAll('body *').length"
    elements = page.run(count)
    press(page, ["End"])
    assert "image 120 of 120" in text(page, "#facts")
    press(page, ["ArrowLeft"] * 30)
    assert "image 90 of 120" in text(page, "#facts")
    assert page.run(count) < elements + 60


def test_keys_decide_and_go_on(page, tmp_path):
    assert text(page, "#name") == "000.jpg"
    press(page, "krK2")
    assert state(page) == "004.jpg: 4 of 120, 2"
    assert page.run("document.getElementById('bar').value") == 4
    press(page, ["ArrowLeft"])
    assert text(page, "#decision") == "Rejected: wrong class"
    press(page, ["Home", "ArrowLeft"])
    assert text(page, "#decision") == "Kept"
    assert text(page, "#message") == "This is the first image."
    press(page, "n")
    assert text(page, "#name") == "004.jpg"
    reasons = {1001: "rejected by eye", 1003: "wrong class"}
    rejected = [{"image_id": number, "reason": reason} for number, reason in reasons.items()]
    saved = {"version": 1, "rejected": rejected, "kept": [1000, 1002]}
    assert exported(page, tmp_path) == saved
    assert read_reject_list(tmp_path / "rejected.json") == reasons
    said = "Saved 2 rejected image(s); 116 on this sheet have no decision yet."
    assert text(page, "#message") == said


def test_a_suspicion_is_the_reason_unless_another_is_given(page, tmp_path):
    press(page, "r")
    assert state(page) == "001.jpg: 1 of 120, 1"
    press(page, ["ArrowLeft"])
    assert text(page, "#decision") == "Rejected: overlap"
    # Letters that are typed are no commands.
    press(page, "e")
    page.run("document.getElementById('reason').select()")
    page.call("Input.insertText", text="krummer <b>Mast</b>")
    press(page, ["k", "Enter"])
    assert text(page, "#decision") == "Rejected: krummer <b>Mast</b>"
    assert exported(page, tmp_path)["rejected"][0]["reason"] == "krummer <b>Mast</b>"
    press(page, "uu")
    assert text(page, "#decision") == "No decision yet"


def test_undo_takes_back_one_decision_after_the_other(page):
    assert page.run("document.getElementById('undo').disabled")
    press(page, ["k", "r", "ArrowLeft", "k", "End"])
    seen = []
    for _ in range(3):
        press(page, "u")
        seen.append(f"{text(page, '#name')} {text(page, '#decision')}")
    none = "No decision yet"
    assert seen == ["001.jpg Rejected: rejected by eye", f"001.jpg {none}", f"000.jpg {none}"]
    press(page, "u")
    assert text(page, "#count") == "0 of 120 decided, 0 rejected"
    assert page.run("localStorage.length") == 1  # where the reader was


def test_the_mouse_does_it_too(page):
    page.click("#keep")
    page.click("#reject")
    assert state(page) == "002.jpg: 2 of 120, 1"
    page.click("#undo")
    assert state(page) == "001.jpg: 1 of 120, 0"
    page.click("#strip button:nth-child(5)")
    assert text(page, "#name") == "004.jpg"
    assert page.run("document.querySelector('#strip button').className") == "keep"
    # After a click the keys still work.
    press(page, "k")
    assert text(page, "#name") == "005.jpg"


def test_masks_and_zoom(page):
    view = "document.getElementById('view').getAttribute('viewBox')"
    classes = "[document.getElementById('masks').className.baseVal, stage.className]"
    whole = page.run(view)
    assert whole == "0 0 160 120"
    seen = []
    for _ in range(3):
        press(page, "m")
        seen.append([text(page, "#toggle-masks").split()[1], *page.run(classes)])
    assert seen == [["outlines", "outlines", ""], ["none", "", "bare"], ["filled", "", ""]]
    press(page, ["ArrowRight", "z"])
    # Two objects of 12 x 12; the one farther to the left comes first in the file.
    assert page.run(view) == "-13 2 48 48"
    assert page.run("document.querySelectorAll('.lit').length") == 2
    press(page, "z")
    assert page.run(view) == "37 2 48 48"
    press(page, "z")
    assert page.run(view) == whole
    page.click("#objects li:nth-child(2) button")
    assert page.run(view) == "37 2 48 48"
    press(page, ["Escape"])
    assert page.run(view) == whole


def test_a_small_object_lies_on_the_large_one_around_it(page):
    press(page, ["ArrowRight"] * 8)
    assert text(page, "#name") == "008.jpg"
    small, large = (
        f"(r => document.elementFromPoint(r.x + {x} / 160 * r.width, r.y + {y} / 120 * r.height))"
        "(document.getElementById('picture').getBoundingClientRect())"
        for x, y in ((20, 35), (10, 25))
    )
    assert page.run(f"{small} === [...document.querySelectorAll('#masks path')].pop()")
    page.run(f"{small}.dispatchEvent(new Event('pointerenter'))")
    assert text(page, "#objects .lit") == "birdS100 px"
    page.run(f"{large}.dispatchEvent(new Event('pointerenter'))")
    assert text(page, "#objects .lit").endswith("M1,500 px")


def test_filters(page):
    def shown():
        return int(text(page, "#shown").split()[0])

    press(page, "rkk")
    choose(page, "#by-decision", "reject")
    assert (shown(), text(page, "#name")) == (1, "000.jpg")
    choose(page, "#by-decision", "none")
    assert (shown(), text(page, "#name")) == (NUMBER - 3, "003.jpg")
    # The list stays as it is while it is worked through, and a chosen option eats no keys.
    press(page, "kr")
    assert (shown(), text(page, "#name")) == (NUMBER - 3, "005.jpg")
    choose(page, "#by-decision", "")
    for value, expected in (("some", 24), ("=overlap", 24), ("none", 96), ("", 120)):
        choose(page, "#by-suspicion", value)
        assert shown() == expected
    choose(page, "#by-size", "1")
    assert shown() == NUMBER // 4
    # Size and class must meet in one object: the larger ones of these images are birds.
    choose(page, "#by-class", "2")
    assert shown() == 0
    assert page.run("document.getElementById('nothing').checkVisibility()")
    press(page, "krz")
    assert text(page, "#count") == "5 of 120 decided, 2 rejected"
    page.click("#filters [type=reset]")
    wait_for(lambda: shown() == NUMBER)
    choose(page, "#by-name", "11")
    assert shown() == 11  # 011, and 110 to 119
    choose(page, "#by-name", "1042")
    assert (shown(), text(page, "#name")) == (1, "042.jpg")
    press(page, ["Escape", "u"])  # of an image that the filter hides: the filter is lifted
    wait_for(lambda: shown() == NUMBER)
    assert text(page, "#name") == "004.jpg"


def test_decisions_outlive_the_page_and_are_shared_by_the_sheets(page, sheets, tmp_path):
    press(page, "k")
    # Another open sheet is followed.
    page.run(
        "(k => window.dispatchEvent(new StorageEvent('storage', {key: k.replace('1000', '1001'),"
        "newValue: JSON.stringify({id: 1001, decision: 'reject', reason: 'x'})})))"
        "(Object.keys(localStorage).find(k => k.endsWith('1000')))"
    )
    assert state(page) == "001.jpg: 2 of 120, 1"
    page.run("window.dispatchEvent(new StorageEvent('storage', {key: null}))")
    assert state(page) == "001.jpg: 0 of 120, 0"
    press(page, ["ArrowLeft", "k", "r", "ArrowRight", "ArrowRight"])
    page.open(sheets[0])
    assert state(page) == "004.jpg: 2 of 120, 1"
    page.open(sheets[2])
    assert text(page, "h1").endswith("sheet 2 of 2")
    assert state(page) == "060.jpg: 0 of 60, 0"
    press(page, "r")
    assert [entry["image_id"] for entry in exported(page, tmp_path)["rejected"]] == [1001, 1060]
    page.click("#previous-sheet")
    title = "document.querySelector('h1')?.textContent"
    wait_for(lambda: (page.run(title) or "").endswith("sheet 1 of 2"))
    assert text(page, "#count") == "2 of 60 decided, 1 rejected"


def test_a_list_is_loaded_and_comes_out_again(page, tmp_path):
    one, other = ({"image_id": number, "reason": "poor picture"} for number in (1002, 7))
    listed = {"version": 1, "rejected": [one, other]}
    said = "Loaded 3 decision(s), 2 of them on this sheet; the others are saved with this sheet's."
    assert imported(page, tmp_path, {**listed, "kept": [1000, 7]}) == said
    assert text(page, "#decision") == "Kept"
    press(page, "kr")
    mine = {"image_id": 1001, "reason": "rejected by eye"}
    assert exported(page, tmp_path)["rejected"] == [other, mine, one]
    press(page, "uuu")
    assert text(page, "#message") == "Undone: the loaded list."
    assert exported(page, tmp_path) == {"version": 1, "rejected": [], "kept": []}
    # Loaded without decisions about kept images: the form that the builder asks for.
    assert imported(page, tmp_path, listed).startswith("Loaded 2 ")


def test_what_is_no_list_changes_nothing(page, tmp_path):
    def with_entry(**entry):
        return {"version": 1, "rejected": [entry]}

    for content, message in (
        ("{", "list.json is no reject list: "),
        ([], 'it is not {"version": 1'),
        ({"version": 2, "rejected": []}, 'it is not {"version": 1'),
        (with_entry(reason="x"), "entry 1 has no image_id"),
        (with_entry(image_id=1.5), "entry 1 has no image_id"),
        (with_entry(image_id=1, reason=3), "a reason that is no text"),
        ({"version": 1, "rejected": [], "kept": [{}]}, "'kept' is no list of image ids"),
    ):
        assert message in imported(page, tmp_path, content)
        assert page.run("document.getElementById('message').className") == "bad"
    assert exported(page, tmp_path) == {"version": 1, "rejected": [], "kept": []}


def test_a_browser_that_stores_nothing(browser, sheets, tmp_path):
    broken = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})"
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=broken)["identifier"]
    try:
        browser.open(sheets[0])
        assert text(browser, "#message").startswith("This browser stores nothing for files")
        press(browser, "kr")
        assert text(browser, "#count") == "2 of 120 decided, 1 rejected"
        assert len(exported(browser, tmp_path)["rejected"]) == 1
        assert browser.problems() == []
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)


def test_hostile_names_do_nothing(browser, tmp_path):
    name = "{:03d}<img src=x onerror='window.pwned=1'>.jpg"
    reasons = [HOSTILE[1], "<!--", "__proto__"]
    made = make_candidates(tmp_path, names=HOSTILE, file_name=name, reasons=reasons)
    title = "<script>1</script>@STYLE@"
    (sheet,) = write_review(tmp_path / "review.html", open_review_set(*made), title=title)
    browser.open(sheet)
    press(browser, "?rkz")
    browser.run("document.querySelectorAll('*').forEach(e => e.dispatchEvent(new Event('error')))")
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.problems() == []
    assert browser.requests() == [sheet.as_uri()]
    assert browser.run("document.title") == title
    assert HOSTILE[0] in browser.run("document.getElementById('by-class').textContent")
    press(browser, ["ArrowLeft"] * 3)
    assert HOSTILE[1] in text(browser, "#why")
    browser.run("localStorage.clear()")


def test_without_scripts_the_sheet_says_so(browser, sheets):
    browser.open(sheets[0], scripts=False)
    try:
        assert "needs JavaScript" in text(browser, "noscript")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
