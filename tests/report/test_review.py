"""Review sheets: what is in the files. How they behave is tested in test_review_browser.py."""

import base64
import dataclasses
import html
import io
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from d2_smallobj.annotations.coco import Annotation
from d2_smallobj.pascal_b.screening import Verdict, write_candidate_list
from d2_smallobj.report.review import open_review_set, read_suspicions, write_review
from d2_smallobj.report.review_images import ReviewTask, draw_review_image, outline
from d2_smallobj.utils.messages import InputError
from d2_smallobj.utils.opencv import cv2


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation(number, image_id, category, box, **more):
    entry = {"id": number, "image_id": image_id, "category_id": category, "iscrowd": 0}
    return {**entry, "segmentation": rectangle(*box), **more}


@pytest.fixture
def candidates(tmp_path):
    """Five images of 80 x 60, the file, and its content to be spoiled."""
    folder = tmp_path / "images"
    (folder / "val2017").mkdir(parents=True)
    images = []
    for number in range(1, 6):
        name = f"val2017/{number:03d}.jpg"
        Image.new("RGB", (80, 60), (40 * number, 90, 120)).save(folder / name)
        images.append({"id": number, "width": 80, "height": 60, "file_name": name})
    images[2]["suspicion"] = ["heavy overlap", "degenerate mask"]
    images[4]["suspicion"] = ["heavy overlap"]
    annotations = [
        annotation(1, 1, 1, (10, 10, 40, 40)),
        annotation(2, 1, 2, (20, 20, 25, 25)),
        annotation(3, 3, 2, (0, 0, 70, 50)),
        annotation(4, 3, 1, (0, 0, 80, 60), iscrowd=1),
    ]
    categories = [{"id": 1, "name": "bird"}, {"id": 2, "name": "cat"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    path = tmp_path / "candidates.json"

    def save():
        path.write_text(json.dumps(content))
        return path, folder

    save()
    return content, save


def data_of(path):
    """The JSON blocks of a sheet, by id."""
    pattern = r'<script type="application/json" id="([^"]*)">(.*?)</script>'
    found = re.findall(pattern, path.read_text("utf-8"))
    return {name: json.loads(text) for name, text in found}


def test_a_sheet_holds_the_images_and_their_objects_and_loads_nothing(candidates, tmp_path):
    (path,) = write_review(tmp_path / "out/review.html", open_review_set(*candidates[1]()))
    data = data_of(path)
    assert list(data) == [*(f"image-{number}" for number in range(5)), "sheet"]
    sheet = data["sheet"]
    assert (sheet["classes"], sheet["sizes"]) == (["bird", "cat"], ["S", "M", "L"])
    assert [entry["id"] for entry in sheet["images"]] == [3, 5, 1, 2, 4]
    assert sheet["images"][2]["cells"] == [[1, 0, 1], [2, 0, 1]]
    assert sheet["images"][0]["cells"] == [[2, 1, 1]]
    first = data["image-2"]
    # Smallest first; the cat lies on the bird, whose visible part is what is counted.
    assert [(kind, area) for kind, _, area, *_ in first["objects"]] == [(2, 25), (1, 875)]
    assert first["objects"][0][4] == [20, 20, 5, 5]
    assert first["void"] == ""
    assert data["image-0"]["void"]
    header, encoded = first["picture"].split(",")
    assert header == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert (image.format, image.size) == ("JPEG", (80, 60))
        assert np.asarray(image)[30, 5].tolist() == pytest.approx([40, 90, 120], abs=4)
    text = path.read_text("utf-8")
    policy = html.unescape(re.search('Content-Security-Policy" content="([^"]*)"', text)[1])
    assert "default-src 'none'; img-src data:;" in policy
    assert "script-src 'sha256-" in policy
    # The only address is the name of SVG, which nobody loads.
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == {"http://www.w3.org/2000/svg"}


VERDICTS = """image_id,file_name,verdict,disagreement,void_share,message,bird S
1,a.jpg,fit,0.3149,0.0100,,3
2,b.jpg,fit,0.2499,0.1999,,3
3,c.jpg,dropped: x,nan,0.4000,"annotation 5: crosses itself, twice",3
4,d.jpg,fit,0.2500,0.2000,,3
"""


def test_the_builders_doubts_are_suspicions(candidates, tmp_path):
    path = tmp_path / "verdicts.csv"
    path.write_text(VERDICTS)
    doubts = read_suspicions(path)
    assert doubts == {
        1: ("LVIS and COCO disagree on 31% of the labelled pixels",),
        3: ("40% of the pixels are void", "annotation 5: crosses itself, twice"),
        4: ("LVIS and COCO disagree on 25% of the labelled pixels", "20% of the pixels are void"),
    }
    review = open_review_set(*candidates[1](), only_suspicious=True)
    assert [task.image_id for task in review.tasks] == [3, 5]
    review = open_review_set(*candidates[1](), suspicions=doubts)
    assert [task.image_id for task in review.tasks] == [3, 4, 1, 5, 2]
    assert review.tasks[0].reasons == ("heavy overlap", "degenerate mask", *doubts[3])
    only = open_review_set(*candidates[1](), suspicions=doubts, only_suspicious=True)
    assert [task.image_id for task in only.tasks] == [3, 4, 1, 5]
    # Read as the builder writes it.
    verdict = Verdict(7, None, ((3, 50),), disagreement=0.5, void_share=0.01)
    write_candidate_list(path, {7: SimpleNamespace(file_name="x.jpg")}, [verdict])
    assert list(read_suspicions(path)) == [7]


def test_what_is_no_list_of_candidates(tmp_path):
    path = tmp_path / "a.csv"
    for content, message in (
        ("", "no column 'image_id' and 'disagreement'"),
        ("image_id,disagreement,message\n", "no column 'void_share'"),
        (VERDICTS.replace("0.3149", "x"), "line 2: could not convert string to float: 'x'"),
        (VERDICTS.replace("4,d.jpg", "?,d.jpg"), "line 5: invalid literal"),
        (VERDICTS + "9\n", "line 6: "),
    ):
        path.write_text(content)
        expected = re.escape(f"a.csv: not the builder's list of candidates: {message}")
        with pytest.raises(ValueError, match=expected):
            read_suspicions(path)


def test_many_images_are_split_over_sheets_that_know_each_other(candidates, tmp_path):
    review = open_review_set(*candidates[1]())
    paths, again = (
        write_review(tmp_path / f"jobs{jobs}" / "review.html", review, per_sheet=2, jobs=jobs)
        for jobs in (1, 2)
    )
    # The same input gives the same sheets, in any number of processes.
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    names = ["review-1-of-3.html", "review-2-of-3.html", "review-3-of-3.html"]
    assert [path.name for path in paths] == names == sorted(os.listdir(tmp_path / "jobs1"))
    sheets = [data_of(path)["sheet"] for path in paths]
    assert [[entry["id"] for entry in sheet["images"]] for sheet in sheets] == [[3, 5], [1, 2], [4]]
    assert all(sheet["sheets"] == names for sheet in sheets)
    assert [sheet["number"] for sheet in sheets] == [0, 1, 2]
    assert {sheet["set"] for sheet in sheets} == {review.set_id}
    # Decisions are not carried over to another set of masks.
    candidates[0]["annotations"].pop()
    assert open_review_set(*candidates[1]()).set_id != review.set_id


@pytest.mark.parametrize(("scale", "hole"), [(1.0, False), (0.5, True)])
def test_an_outline_drawn_again_is_the_mask(scale, hole):
    rows, columns = np.mgrid[:80, :120]
    mask = (rows - 40) ** 2 + (columns - 50) ** 2 < 30**2
    if hole:
        mask &= (rows - 38) ** 2 + (columns - 52) ** 2 > 15**2
    path = outline(mask, scale, (7, 3))
    image = Image.new("1", (127, 83))
    for part in path.split("M")[1:]:
        corners = [tuple(map(float, pair.split(","))) for pair in part.rstrip("z").split(" ")]
        corners = [(x / scale - 0.5, y / scale - 0.5) for x, y in corners]
        ring = Image.new("1", image.size)
        ImageDraw.Draw(ring).polygon(corners, fill=1)
        image = Image.fromarray(np.asarray(image) ^ np.asarray(ring))
    expected = np.zeros((83, 127), bool)
    expected[3:, 7:] = mask
    # Off by less than half a pixel of the picture along the border, on average.
    border = 2 * np.pi * (45 if hole else 30)
    assert np.count_nonzero(np.asarray(image) != expected) < 0.5 * border / scale
    assert outline(np.zeros((4, 4), bool), 1.0) == ""
    assert outline(np.eye(4) * np.eye(4)[1] > 0, 2.0) == "M3.0,3.0z"


def test_data_cannot_end_its_element(candidates, tmp_path):
    hostile = "</script><script>1</script><!--\u2028&'"
    candidates[0]["images"][0]["suspicion"] = [hostile]
    candidates[0]["categories"][0]["name"] = hostile
    review = open_review_set(*candidates[1]())
    # A lone surrogate has no UTF-8; JSON escapes it.
    review = dataclasses.replace(review, set_id="\ud800")
    (path,) = write_review(tmp_path / "review.html", review, title=hostile)
    text = path.read_text("utf-8")
    blocks = re.findall('<script type="application/json".*>(.*)</script>\n', text)
    assert not set("".join(blocks)) & set("<>&\u2028")
    assert (len(blocks), text.count("</script>")) == (6, 7)
    sheet = json.loads(blocks[-1])
    assert (sheet["classes"][0], sheet["set"]) == (hostile, "\ud800")
    assert [hostile] in [image["why"] for image in sheet["images"]]


def test_file_names_that_lead_out_of_the_folder_are_refused(candidates, tmp_path):
    content, save = candidates
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    for name in ("../secret.jpg", "val2017/../../x.jpg", "C:/x.jpg", "", str(secret)):
        content["images"][1]["file_name"] = name
        message = r"1 image\(s\) without a usable file name[\s\S]*image 2"
        if name == str(secret):  # An absolute name means one below the folder.
            message = rf"1 image file\(s\) missing:\n  {tmp_path}/images/"
        with pytest.raises(InputError, match=message):
            open_review_set(*save())


def test_a_built_set_finds_its_images_where_coco_has_them(candidates):
    content, save = candidates
    for image in content["images"]:
        image["coco_file"] = image["file_name"]
        image["file_name"] = f"{image['id']:012d}.jpg"
    _, folder = save()
    first = open_review_set(*save()).tasks[0]
    assert (first.path, first.file_name) == (folder / "val2017/003.jpg", "000000000003.jpg")
    content["images"][0]["coco_file"] = "../x.jpg"
    with pytest.raises(InputError, match=r"image 1: '\.\./x\.jpg' is not a path within"):
        open_review_set(*save())


def test_refusals(candidates):
    content, save = candidates
    path, folder = save()
    for option, value in (("per_sheet", 0), ("side", 8), ("side", 5000)):
        with pytest.raises(ValueError, match=rf"{option} must be in .*, got {value}"):
            write_review("review.html", open_review_set(path, folder), **{option: value})
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder of images"):
        open_review_set(path, folder / "nowhere")
    for number in (0, 3):
        (folder / content["images"][number]["file_name"]).unlink()
    with pytest.raises(InputError, match=r"2 image file\(s\) missing[\s\S]*001[\s\S]*004"):
        open_review_set(path, folder)
    for reasons in ("heavy overlap", [1], None, {"a": "b"}):
        content["images"][0]["suspicion"] = reasons
        with pytest.raises(ValueError, match=r"candidates\.json: an image's 'suspicion' is a list"):
            open_review_set(*save())
    for image in content["images"]:
        image.pop("suspicion", None)
    with pytest.raises(ValueError, match="no image to review"):
        open_review_set(*save(), only_suspicious=True)


def test_damaged_images_are_listed_and_no_sheet_is_written(candidates, tmp_path):
    content, save = candidates
    _, folder = save()
    files = [folder / image["file_name"] for image in content["images"]]
    files[0].write_bytes(files[0].read_bytes()[:200])
    files[1].write_bytes(b"no image")
    Image.new("RGB", (60, 80)).save(files[2])
    content["annotations"].append(annotation(9, 4, 1, (0, 0, 5, 5), segmentation=[[1, 2, 3]]))
    output = tmp_path / "out" / "review.html"
    review = open_review_set(*save())
    with pytest.raises(InputError, match=r"4 image\(s\) that cannot be shown") as caught:
        write_review(output, review, per_sheet=1)
    damaged = (
        "1.jpg: the image cannot be read",
        "2.jpg: the image cannot be read",
        "3.jpg: 60 x 80 pixels, but 80 x 60",
        "9: a poly",
    )
    for text in damaged:
        assert text in str(caught.value)
    assert os.listdir(output.parent) == []


def test_pictures_are_shrunk_grey_ones_shown_and_a_vanished_one_is_named(candidates, tmp_path):
    image = draw_review_image(open_review_set(*candidates[1]()).tasks[2], side=40)
    assert (image["view"], image["size"]) == ((40, 30), [80, 60])
    assert image["objects"][0][2:5:2] == (25, [10, 10, 2.5, 2.5])
    task = ReviewTask(1, "x.jpg", tmp_path / "x.jpg", (4, 4), (), (), "a.json")
    assert draw_review_image(task, side=64) == f"{tmp_path / 'x.jpg'}: no such image"
    Image.new("L", (9, 5), 77).save(tmp_path / "x.png")
    found = (Annotation(1, 1, 1, False, rectangle(1, 1, 4, 4)),)
    task = ReviewTask("x", "x.png", tmp_path / "x.png", (5, 9), found, (), "a.json")
    image = draw_review_image(task, side=64)
    assert image["view"] == (9, 5)
    assert [area for _, _, area, *_ in image["objects"]] == [9]


@pytest.fixture
def command():
    """``smallobj prepare review``."""
    from d2_smallobj.commands.build_pascal_b import review_pascal_b

    threads = cv2.getNumThreads()
    yield review_pascal_b
    cv2.setNumThreads(threads)


def test_the_command(command, candidates, tmp_path, capsys):
    path, folder = candidates[1]()

    def run(*more):
        command([*map(str, more), "--output", str(tmp_path / "review.html")])
        return capsys.readouterr().out

    done = run("--json", path, "--images", folder, "--per-sheet", 3, "--only-suspicious")
    assert done.startswith("2 images in 1 sheet(s), 0.0 MB: ")
    assert (tmp_path / "review.html").is_file()
    # A set that was built: its annotations and images have their places.
    built = tmp_path / "pascal_b"
    (built / "annotations").mkdir(parents=True)
    path.rename(built / "annotations/instances_val.json")
    folder.rename(built / "JPEGImages")
    assert run("--pascal-b", built).startswith("5 images in 1 sheet(s)")
    with pytest.raises(SystemExit, match=r"^error: 5 image file\(s\) missing"):
        run("--pascal-b", built, "--images", tmp_path)
    for arguments, message in (
        ([], "give either --pascal-b or --coco-json"),
        (["--json", "a", "--pascal-b", "b"], "give either --pascal-b or --coco-json"),
        (["--json", "a"], "--coco-json needs the folder of its images"),
    ):
        with pytest.raises(SystemExit):
            run(*arguments)
        assert message in capsys.readouterr().err
