"""The stand's data: files read as their formats say, pictures drawn alike every time, labels that mean what they say.

Nothing is fetched here. Where the package of a network was fetched before, its static accuracy on drawn pictures is checked too.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import fashion_mnist, openclipart, pages, pictures, text_lines, third_party
from benchmarks.compare import begun_with, options_of, parse
from benchmarks.drawing import FALLBACK, FONT_PACKAGES, WORD_PACKAGES, Kit, covers, full_kit, han_text, load_font
from benchmarks.idx import read_idx
from benchmarks.nets import LARGE_NETS, NETS
from benchmarks.packages import BENCH
from benchmarks.render import Sample, draw, generator
from benchmarks.static_training import Recipe
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_data
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.data.presets import PixelOptions

ROOT = Path(__file__).parent.parent
FETCHED = ROOT / BENCH


def line(rng: np.random.Generator) -> tuple[Image.Image, int]:
    """Return a line of text, drawn with the font inside Pillow."""
    return text_lines.text_sample(rng, FALLBACK)


def page(rng: np.random.Generator) -> tuple[Image.Image, int]:
    """Return a page, drawn with the font inside Pillow."""
    return pages.page_sample(rng, FALLBACK)


def picture(rng: np.random.Generator) -> tuple[Image.Image, int]:
    """Return a picture of soft bands."""
    return pictures.picture_sample(rng, pictures.Gallery())


def idx(values: bytes, *shape: int, kind: int = 8) -> bytes:
    """Return an idx file laid out by hand."""
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + values


def test_idx_files_by_hand(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a-idx3-ubyte", tmp_path / "b-idx1-ubyte.gz"
    plain.write_bytes(idx(bytes(range(12)), 2, 2, 3))
    packed.write_bytes(gzip.compress(idx(b"\x07\xff", 2)))
    assert read_idx(plain).tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert read_idx(packed).tolist() == [7, 255]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0\0", "begins with 0000"),
        (idx(b"\0\0\0\0", 1, kind=13), "begins with 00000d01"),
        (idx(b"", 1, 2)[:8], "ends within its shape"),
        (idx(b"\x01\x02\x03", 2), "holds 3 values, its shape"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_idx(tmp_path / "x")


def test_fashion_mnist_is_written_as_the_converter_takes_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 30)):
        images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images.tobytes(), count, 28, 28)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels.tobytes(), count)))
    fashion_mnist.write_data(tmp_path, tmp_path / "out")
    dataset = load_data(
        tmp_path / "out" / "train.npz", preprocess=fashion_mnist.preprocessing(), space=LabelSpace(10), seed=0
    )
    assert len(dataset.train) + len(dataset.calib) + len(dataset.test) == 60
    stored = np.load(tmp_path / "out" / "test.npz")
    assert np.array_equal(stored["images"][..., 0], images)
    found = fashion_mnist.preprocessing()(stored["images"])
    assert np.allclose(found[:, 0], (images / 255 - 0.2860) / 0.3530, atol=1e-5)


@pytest.mark.parametrize("make", [line, page, picture])
def test_a_larger_set_begins_with_the_smaller_one(make: Sample) -> None:
    some, labels = draw(make, 3, "train", range(4))
    again, same = draw(make, 3, "train", range(2, 4))
    assert np.array_equal(some[2:], again)
    assert np.array_equal(labels[2:], same)
    for seed, part in ((4, "train"), (3, "test")):
        others, _ = draw(make, seed, part, range(4))
        assert not np.array_equal(some, others)


def test_a_label_says_how_a_line_was_turned() -> None:
    for index in range(20):
        found, label = line(generator(0, "train", index))
        rng = generator(0, "train", index)
        assert label == int(rng.integers(2))
        upright = text_lines.text_line(rng, FALLBACK)
        expected = upright.rotate(180 * label)
        assert np.array_equal(np.asarray(found), np.asarray(text_lines.fitted(expected)))


def test_class_k_is_a_page_turned_clockwise_by_k_quarters() -> None:
    corner = np.zeros((6, 4, 3), np.uint8)
    corner[0, 0] = 255  # top left, so clockwise: top right, bottom right, bottom left
    for label, place in enumerate([(0, 0), (0, 5), (5, 3), (3, 0)]):
        found = np.asarray(pages.turned(Image.fromarray(corner), label))
        assert found[place].tolist() == [255, 255, 255]
        assert found.sum() == 3 * 255


def test_a_turned_page_is_cut_out_as_the_upright_one_is() -> None:
    upright = pages.page(np.random.default_rng(5), FALLBACK)
    whole = np.asarray(pages.fitted(upright), np.float32)
    for label in (1, 2, 3):
        found = np.asarray(pages.fitted(pages.turned(upright, label)), np.float32)
        back = np.rot90(found, label)  # an odd margin is cut off at the other side, so it may be one pixel off
        near = [np.roll(back, shift, axis=axis) for axis in (0, 1) for shift in (-1, 0, 1)]
        assert min(np.abs(whole - other).mean() for other in near) < 1


@pytest.mark.parametrize("text", ["pod", "8096-10-08", "SOS", "un"])
def test_lines_that_can_be_turned_are_known(text: str) -> None:
    assert text_lines.reads_both_ways(text)


def test_no_line_can_be_turned() -> None:
    kit = Kit((None,), ("pod", "nun", "SOS", "text"))
    rng = np.random.default_rng(0)
    assert not any(text_lines.reads_both_ways(text_lines.line_text(rng, kit)) for _ in range(300))


def test_a_line_is_padded_or_squeezed() -> None:
    short = np.asarray(text_lines.fitted(Image.new("RGB", (50, 100), "red")))
    assert short.shape == (48, 192, 3)
    assert (short[:, :24] == (255, 0, 0)).all()
    assert (short[:, 24:] == text_lines.PADDING).all()
    assert (np.asarray(text_lines.fitted(Image.new("RGB", (5000, 100), "red"))) == (255, 0, 0)).all()


def test_chinese_text_is_frequent_characters() -> None:
    text = han_text(np.random.default_rng(0), 500)
    assert len(text) == 500
    assert all("一" <= c <= "龥" for c in text)


def test_a_font_knows_what_it_lacks() -> None:
    font = load_font(None, 20)
    assert covers(font, "Letters and 0123")
    assert not covers(font, "中")


@pytest.mark.parametrize("network", third_party.NETWORKS, ids=lambda n: n.name)
def test_the_options_say_what_the_package_does(network: third_party.Network) -> None:
    words = network.options()
    assert ("--no-flip" in words) is not network.flips
    told = dict(zip(*[iter(w for w in words if w != "--no-flip")] * 2, strict=True))
    mean, std = ([float(v) for v in told[name].split(",")] for name in ("--mean", "--std"))
    asked = make_preprocess(
        told["--preprocess"],
        size=network.size,
        channels=3,
        layout=network.layout,
        pixels=PixelOptions(mean=mean, std=std),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, *network.size, 3), np.uint8)
    expected = (pixels[..., ::-1] / 255 - np.array(network.mean)) / np.array(network.std)
    found = asked(pixels) if network.layout == "NHWC" else asked(pixels).transpose(0, 2, 3, 1)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert np.allclose(asked(pixels), network.preprocess()(pixels), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "make"), [("text-direction", text_lines.text_sample), ("page-orientation", pages.page_sample)]
)
def test_others_networks_read_what_is_drawn(
    name: str, make: Callable[[np.random.Generator, Kit], tuple[Image.Image, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FETCHED / "third_party" / f"{name}.onnx"
    packages = [FETCHED / "debian" / package for package in FONT_PACKAGES + WORD_PACKAGES]
    if not path.exists() or not all(folder.is_dir() for folder in packages):
        pytest.skip("python -m benchmarks.third_party and python -m benchmarks.render have not fetched their packages")
    monkeypatch.chdir(ROOT)
    (network,) = (n for n in third_party.NETWORKS if n.name == name)
    kit = full_kit()
    images, labels = draw(lambda rng: make(rng, kit), 0, "test", range(40))
    said = third_party.answers(network, path, images).argmax(axis=1)
    assert (said == labels).mean() > 0.85  # chance is 0.5 and 0.25, and a turned label gives nearly 0


def test_subjects_by_hand() -> None:
    names = ["a/x/1", "a/x/2", "a/y/1", "a/1", "a/2", "b/1", "unsorted/1", "1"]
    found = openclipart.subjects(map(PurePosixPath, names), split=2, least=2)
    assert {str(place): name for place, name in found.items()} == {
        "a/x/1": "a-x", "a/x/2": "a-x", "a/y/1": "a", "a/1": "a", "a/2": "a",
    }  # fmt: skip


def test_a_series_stays_in_one_part() -> None:
    assert openclipart.series("lemon_bw") == openclipart.series("Lemon-02") == openclipart.series("lemon") == "lemon"
    assert openclipart.series("2") == "2"
    drawn = [openclipart.part_of("food", f"thing{chr(97 + i % 26)}{'x' * (i // 26)}", 0) for i in range(400)]
    shares = {part: drawn.count(part) / len(drawn) for part in openclipart.SHARES}
    assert shares == pytest.approx(openclipart.SHARES, abs=0.08)
    assert openclipart.part_of("food", "lemon_bw", 0) == openclipart.part_of("food", "lemon", 0)


def test_drawings_keep_their_shape_on_white_and_nothing_is_enlarged(tmp_path: Path) -> None:
    for name, size in (("wide", (448, 112)), ("small", (100, 100)), ("copy", (448, 112))):
        pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 4), np.uint8)
        pixels[..., 3] = 255
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    Image.new("RGBA", (300, 300), (255, 255, 255, 90)).save(tmp_path / "blank.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = openclipart.large_drawings(tmp_path)
    assert [str(place) for place in found] == ["copy.png"]  # the first of two that are the same
    pixels = np.asarray(found[PurePosixPath("copy.png")])
    assert pixels.shape == (224, 224, 3)
    rows = np.flatnonzero((pixels != 255).any(axis=(1, 2)))
    assert (rows[0], rows[-1]) == (84, 139)


@pytest.mark.parametrize("name", sorted(LARGE_NETS))
def test_large_nets_see_large_images(name: str) -> None:
    net = LARGE_NETS[name](7).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 160, 160)).shape == (1, 7)
        assert net[:-3](torch.zeros(1, 3, 160, 160)).shape[2:] == (5, 5)


def test_small_nets_take_grey_images() -> None:
    for name in fashion_mnist.NAMES:
        with torch.no_grad():
            assert NETS[name](10, channels=1).eval()(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_a_training_ends_by_its_steps_or_its_minutes() -> None:
    assert Recipe().progress(5, 10, 1e9) == 0.5
    assert Recipe(minutes=2).progress(5, 10, 90) == 0.75
    assert Recipe(minutes=2).progress(9, 10, 0) == 0.9


def test_the_stand_takes_the_options_of_a_network_of_others(tmp_path: Path) -> None:
    usual = ["--model", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--methods", "static"]
    args = parse([*usual, *third_party.NETWORKS[0].options()])
    options = options_of(args)
    assert (options.size, options.preprocess) == ((48, 192), "bgr-caffe")
    assert options.mean == options.std == (0.5, 0.5, 0.5)
    assert begun_with(args) != begun_with(parse(usual))
    assert "mean" not in begun_with(parse(usual))  # a run that was begun before there was the option goes on
