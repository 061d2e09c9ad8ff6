"""The gallery in headless Chromium, opened from the disk as its users do."""

from __future__ import annotations

import io
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from lib.data.coco import ImageRecord
from lib.proposals import rle
from lib.visualization.gallery import LAYERS, Instance, Layer, Page, Picture, write_gallery
from tests.visualization.browser import start_chromium

HOSTILE = "<img src=x onerror=\"document.title='broken'\">"
CLASSES = ["cat", HOSTILE, "dog"]
WAIT = 60


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    driver = start_chromium(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def square(top, left, side, size=(60, 80)):
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return rle.mask_to_rle(mask)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six images; AP falls from 1 to 0.2 in their order, the last has none and a hostile name."""
    place = tmp_path_factory.mktemp("gallery")
    names = [*(f"{k}.png" for k in range(5)), 'a "b" & <i>c<i>#?.png']
    pictures = []
    for k, name in enumerate(names):
        cv2.imwrite(str(place / name), np.full((60, 80, 3), 40 * k, np.uint8))
        record = ImageRecord(10 + k, name, 60, 80, np.zeros(3, np.float32))
        detections = [
            Instance(k % 3, square(10, 10, 30), 0.9 - 0.1 * k, hit=True),
            Instance(2, square(5, 50, 20), 0.15, hit=False),
        ]
        truth = [Instance(k % 3, square(12, 12, 30), None, hit=True)] if k < 5 else []
        pictures.append(
            Picture(
                record,
                place / name,
                {"detections": detections, "ground_truth": truth},
                ap=1 - 0.2 * k if k < 5 else None,
                objects=len(truth),
                found=len(truth),
            )
        )
    page = Page(
        title=f"results {HOSTILE}",
        facts=[("Run", HOSTILE)],
        class_names=CLASSES,
        layers={
            "detections": LAYERS["detections"],
            "ground_truth": LAYERS["ground_truth"],
            "proposals": Layer("Proposals", "proposal", detail=True),
        },
        metrics={"ap50": 0.5},
        per_class={name: {"objects": 2, "ap50": 0.5} for name in CLASSES},
        precision={0: np.linspace(1, 0, 101), 1: np.ones(101)},
        history=[{"iteration": k, "total": 5.0 / k, "bag": 1.0 / k, "lr": 0.1} for k in (1, 2, 3)],
    )
    details = [(4, {"proposals": [[None, None, None, [[40, 40, 80, 0, 0, 80]]]]})]
    assert write_gallery(place / "page", page, pictures, details) == {}
    return place / "page"


class Driven:
    """What a user does with the page and sees of it."""

    def __init__(self, driver, folder: Path):
        self.driver = driver
        driver.get(f"{(folder / 'index.html').as_uri()}")

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def until(self, condition):
        """Waits for what the page does in its own time."""
        end = time.monotonic() + WAIT
        while not (result := condition()):
            assert time.monotonic() < end, "the page did not come to what is expected"
            time.sleep(0.05)
        return result

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def names(self):
        return self.run("[...document.querySelectorAll('.tile .name')].map(e => e.textContent)")

    @property
    def focused(self):
        return self.run(
            "document.activeElement.matches('.tile') && "
            "document.activeElement.querySelector('.name').textContent"
        )

    def settled(self):
        """Waits until every tile has drawn: until then the layout may still replace tiles."""
        tiles = "[...document.querySelectorAll('.tile canvas')]"
        self.until(lambda: self.run(f"{tiles}.every(c => 'drawn' in c.dataset)"))
        return tiles

    def drawn(self, count):
        """Waits until `count` instances are drawn on all tiles together."""
        tiles = self.settled()
        self.until(
            lambda: self.run(f"{tiles}.reduce((n, c) => n + Number(c.dataset.drawn), 0)") == count
        )

    def viewed(self, count):
        self.until(
            lambda: self.run("Number(document.getElementById('canvas').dataset.items)") == count
        )

    def pixels(self, selector):
        png = self.find(selector).screenshot_as_png
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    def set_score(self, value):
        self.driver.execute_script(
            "const s = document.getElementById('score'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input', {bubbles: true}))",
            value,
        )

    def no_errors(self):
        assert self.driver.get_log("browser") == []


@pytest.fixture
def page(chromium, folder):
    driven = Driven(chromium, folder)
    driven.settled()
    yield driven
    driven.no_errors()


def keys():
    from selenium.webdriver.common.keys import Keys

    return Keys


WORST_FIRST = ["4.png", "3.png", "2.png", "1.png", "0.png", 'a "b" & <i>c<i>#?.png']


def test_the_worst_come_first_and_names_are_text(page):
    assert page.names == WORST_FIRST
    assert page.driver.title == f"results {HOSTILE}"
    assert page.find("h1").text == f"results {HOSTILE}"
    assert len(page.all(".tile img")) == 6 and len(page.all("img")) == 6
    page.until(lambda: page.run("[...document.images].every(i => i.naturalWidth === 80)"))
    assert "AP 20 · 1/1 found · 1 shown" in page.find(".tile").text
    assert page.find("#status").text == "6 images"


def test_order(page):
    options = [option.text for option in page.all("#sort option")]
    assert options[0] == "Worst AP first" and "By name" in options
    page.find("#sort [value=best]").click()
    assert page.names == [*WORST_FIRST[4::-1], WORST_FIRST[5]]
    page.find("#sort [value=unsure]").click()
    assert page.names == [WORST_FIRST[5], *WORST_FIRST[:5]]


def test_filter_by_name_class_and_score(page):
    page.find("#find").send_keys("3.P")
    page.until(lambda: page.names == ["3.png"])
    assert page.find("#status").text == "1 of 6 images"
    page.find("#find").send_keys(keys().BACKSPACE * 3)
    page.until(lambda: len(page.names) == 6)

    page.set_score(0)
    page.drawn(12)
    page.find("#no-class").click()
    assert page.names == [] and page.find("#nothing").is_displayed()
    page.find("[data-class='1']").click()
    assert page.names == ["4.png", "1.png"]
    page.drawn(2)
    page.find("[data-class='0']").click()
    assert page.names == ["4.png", "3.png", "1.png", "0.png"]
    page.find("#all-classes").click()

    page.set_score(0.65)
    page.until(lambda: "0 shown" in page.find(".tile").text)
    page.drawn(3)  # 0.9, 0.8 and 0.7
    page.find("#nonempty").click()
    page.until(lambda: page.names == ["2.png", "1.png", "0.png"])
    page.set_score(1)
    page.until(lambda: page.find("#nothing").is_displayed())
    page.find("#reset").click()
    assert len(page.names) == 6


def test_layers_on_thumbnails(page):
    page.drawn(6)
    both = page.pixels(".tile .picture")
    page.find("#layers [data-layer=detections]").click()
    page.drawn(0)
    none = page.pixels(".tile .picture")
    assert np.abs(both - none).max() > 60
    assert np.ptp(none[10:-10, 10:-10], axis=(0, 1)).max() <= 2  # the plain image
    page.find("#layers [data-layer=ground_truth]").click()
    page.drawn(5)
    page.find("#layers [data-layer=proposals]").click()
    page.drawn(6)  # one image has details
    assert page.find("#layers p").text == "Step by step, on 1 of 6 images"
    page.press("1")
    page.drawn(12)


def test_keyboard_alone(page):
    k = keys()
    page.run("document.querySelector('.tile').focus()")
    page.press(k.ARROW_RIGHT, k.ARROW_RIGHT)
    assert page.focused == "2.png"
    assert page.find("[aria-selected=true].tile .name").text == "2.png"
    outline = page.run("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.press(k.END)
    assert page.focused == WORST_FIRST[5]
    page.press(k.HOME, k.ARROW_LEFT)
    assert page.focused == "4.png"
    page.press(k.ENTER)
    assert page.find("#viewer").is_displayed()
    assert page.find("#viewer-name").text == "4.png"
    page.press(k.ARROW_RIGHT)
    assert page.find("#viewer-name").text == "3.png"
    page.viewed(1)
    page.press("2")
    page.viewed(2)
    assert page.find("#viewer-layers [data-layer=ground_truth]").is_selected()
    page.press(k.ESCAPE)
    # The browser first gives the focus back to where it was, then says that the viewer has closed.
    page.until(lambda: page.focused == "3.png")
    assert not page.find("#viewer").is_displayed()
    tab, to_tiles = k.TAB, 40
    for _ in range(to_tiles):  # from the start of the page on, by Tab alone
        page.press(tab)
        if page.focused:
            break
    assert page.focused == "3.png"


def zoom_of(page):
    return int(page.find("#zoom").text.split()[0])


def test_one_image(page):
    page.all(".tile")[1].click()
    page.viewed(1)
    assert "detection, hit" in page.find("#list").text
    assert page.find("#canvas").get_attribute("aria-label") == "3.png: cat 0.60"
    page.until(lambda: np.ptp(page.pixels("#canvas"), axis=(0, 1)).max() > 60)
    first, whole = zoom_of(page), page.pixels("#canvas")
    page.find("#larger").click()
    page.until(lambda: zoom_of(page) == pytest.approx(1.5 * first, rel=0.01))
    page.until(lambda: np.abs(page.pixels("#canvas") - whole).max() > 60)
    page.press("-", "-", "-")
    page.until(lambda: zoom_of(page) == first)
    page.press("+", "+")
    page.until(lambda: zoom_of(page) > 2 * first)
    before = page.pixels("#canvas")
    page.press(keys().SHIFT + keys().ARROW_RIGHT)
    page.until(lambda: np.abs(page.pixels("#canvas") - before).max() > 60)
    page.press("0")
    page.until(lambda: zoom_of(page) == first)
    page.find("#list button").click()  # an instance of 30 of the image's 60 pixels
    page.until(lambda: zoom_of(page) > 1.2 * first)
    page.find("#close").click()
    page.until(lambda: not page.find("#viewer").is_displayed())


def test_pointer(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    page.find(".tile").click()
    page.viewed(1)
    first = zoom_of(page)
    canvas = page.find("#canvas")
    origin = ScrollOrigin.from_element(canvas)
    ActionChains(page.driver).scroll_from_origin(origin, 0, -400).perform()
    page.until(lambda: zoom_of(page) > 1.2 * first)
    page.until(lambda: np.ptp(page.pixels("#canvas"), axis=(0, 1)).max() > 60)
    before = page.pixels("#canvas")
    ActionChains(page.driver).drag_and_drop_by_offset(canvas, 80, 40).perform()
    page.until(lambda: np.abs(page.pixels("#canvas") - before).max() > 60)


def test_curves(page):
    page.find("#tab-run").click()
    assert not page.find("#images").is_displayed()
    assert len(page.all("#curve-precision polyline")) == 3
    assert len(page.all("#curve-losses polyline")) == 2
    assert len(page.all("#curve-rate polyline")) == 1
    legend = [button.text for button in page.all("#curve-precision .legend button")]
    assert legend == ["cat", HOSTILE, "mean"]
    page.find("#curve-precision .legend button").click()
    assert not page.find("#curve-precision polyline").is_displayed()
    assert HOSTILE in page.find("#run table").text
    page.find("#tab-run").send_keys(keys().ARROW_LEFT)
    assert page.find("#images").is_displayed()


def test_light_and_dark(page):
    def ground():
        return page.run("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.find("#theme").click()
    assert ground() != light
    page.driver.refresh()
    assert ground() != light  # it is remembered
    page.find("#theme").click()
    assert ground() == light


def test_everything_has_a_name(page):
    """Controls have a label that a screen reader can say."""
    before = page.all("button, input, select, [role=option]")
    page_names = [
        (control, control.accessible_name) for control in before if control.is_displayed()
    ]
    page.find(".tile").click()
    page.viewed(1)
    inside = page.all("#viewer button, #viewer input, #canvas")
    for control, name in page_names + [(control, control.accessible_name) for control in inside]:
        assert name, control.get_attribute("outerHTML")
    assert len(page_names) > 15 and len(inside) > 9


def test_five_thousand_images_open_at_once(chromium, folder, tmp_path):
    """Only the index of the images is read: thumbnails and outlines come as they are looked at."""
    overview = (folder / "data/overview.js").read_text()
    page = tmp_path / "page"
    (page / "data").mkdir(parents=True)
    for name in ("images", "thumbs"):
        (page / name).symlink_to(folder / name)
    for path in folder.glob("*.*"):
        (page / path.name).symlink_to(path)
    many = (
        "const six = content.images; content.detailed = [];"
        "content.images = Array.from({length: 5000}, (_, k) => "
        "({...six[k % 6], name: `image ${k}.png`, ap: k % 100 / 100}));"
    )
    (page / "data/overview.js").write_text(
        f"(() => {{ const keep = window.galleryData; window.galleryData = (n, content) => "
        f"{{ {many} keep(n, content); window.galleryData = keep; }}; }})();\n{overview}"
    )
    chunk = (folder / "data/chunk-0.js").read_text()
    content = chunk[len('galleryData("chunk-0", [') : -len("]);\n")]
    for k in range(100):
        repeated = ",".join([content] * 9)
        (page / f"data/chunk-{k}.js").write_text(f'galleryData("chunk-{k}", [{repeated}]);\n')

    driven = Driven(chromium, page)
    assert driven.find("#status").text == "5000 images"
    assert driven.names[:2] == ["image 0.png", "image 100.png"]
    assert len(driven.all(".tile")) < 100
    driven.until(lambda: driven.run("[...document.images].every(i => i.naturalWidth === 80)"))
    driven.run("document.querySelector('.tile').focus()")
    driven.press(keys().END)
    assert driven.focused == "image 4999.png"
    assert len(driven.all(".tile")) < 100
    driven.until(lambda: driven.run("document.activeElement.querySelector('canvas').dataset.drawn"))
    driven.find("#find").send_keys("4321")
    driven.until(lambda: driven.names == ["image 4321.png"])
    took = driven.run("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    print(f"5000 images: ready after {took:.0f} ms")
    driven.no_errors()
