import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from lib.data.images import IMAGE_SUFFIXES, make_usable, read_image

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def encoded(suffix, image=RGB, *params):
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]
    return cv2.imencode(suffix, image, params)[1].tobytes()


def write(folder, content, name="x.img"):
    path = folder / name
    path.write_bytes(content)
    return path


def with_exif_rotation(jpeg):
    # A big-endian TIFF block with the one tag Orientation (0x112) = 6, as cameras write it.
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tiff"])
def test_lossless_formats_come_back_as_rgb(tmp_path, suffix):
    params = (cv2.IMWRITE_WEBP_QUALITY, 101) if suffix == ".webp" else ()
    image = read_image(write(tmp_path, encoded(suffix, RGB, *params)))
    assert image.dtype == np.uint8
    assert np.array_equal(image, RGB)


def test_jpeg_channels_are_in_order(tmp_path):
    red = np.full((16, 16, 3), (250, 10, 20), np.uint8)
    image = read_image(write(tmp_path, encoded(".jpg", red)))
    assert np.abs(image.astype(int) - red).max() < 6


def test_grey_becomes_three_channels(tmp_path):
    grey = RGB[..., 0]
    assert np.array_equal(read_image(write(tmp_path, encoded(".png", grey))), np.dstack([grey] * 3))


def test_alpha_is_dropped(tmp_path):
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 7, np.uint8)])
    assert np.array_equal(read_image(write(tmp_path, encoded(".png", rgba))), RGB)


def test_sixteen_bits_become_eight(tmp_path):
    image = read_image(write(tmp_path, encoded(".png", RGB.astype(np.uint16) * 257)))
    assert image.dtype == np.uint8
    assert np.array_equal(image, RGB)


def test_the_size_tells_whether_exif_orientation_counts(tmp_path):
    jpeg = encoded(".jpg")
    stored = read_image(write(tmp_path, jpeg, "a.jpg"))
    turned = write(tmp_path, with_exif_rotation(jpeg), "b.jpg")
    upright = np.rot90(stored, -1)
    assert np.array_equal(read_image(turned), upright)
    assert np.array_equal(read_image(turned, (30, 20)), upright)  # the json of an upright image
    assert np.array_equal(read_image(turned, (20, 30)), stored)  # COCO's: of pixels as stored
    with pytest.raises(
        ValueError,
        match=r"b\.jpg: the image has 20x30 pixels as stored \(height x width\), 30x20 when turned "
        r"upright \(EXIF\), the json says 10x20",
    ):
        read_image(turned, (10, 20))


PILLOW = {".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "MPO", ".jp2": "JPEG2000", ".dib": "BMP"}
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".avif")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_every_format_is_turned_once(tmp_path, monkeypatch, suffix, orientation):
    coarse = cv2.resize(RGB[:4, :5], (40, 24), interpolation=cv2.INTER_LINEAR)
    image = Image.fromarray(coarse).convert({".pgm": "L", ".pbm": "1"}.get(suffix, "RGB"))
    exif = Image.Exif()
    exif[0x112] = orientation
    path, copy = tmp_path / f"a{suffix}", tmp_path / f"copy{suffix}"
    options = {"quality": 95} if suffix in LOSSY else {}
    image.save(
        path,
        PILLOW.get(suffix, {".pnm": "PPM"}.get(suffix)),
        exif=exif,
        **(options or ({"lossless": True} if suffix == ".webp" else {})),
    )
    with Image.open(path) as opened:
        tagged = opened.getexif().get(0x112, 1) != 1
        expected = np.array(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # as for photographs of 200 megapixels
    tolerance = 25 if suffix in LOSSY else 0
    assert np.abs(read_image(path) - expected).max() <= tolerance
    size, done = make_usable(path, copy)
    assert size == expected.shape[:2]
    assert done == (["turned upright (EXIF)"] if tagged else [])
    assert copy.exists() == tagged
    if tagged:
        assert np.abs(read_image(copy, size) - expected).max() <= tolerance
        assert read_image(path, (24, 40)).shape == (24, 40, 3)  # as stored
    assert Image.MAX_IMAGE_PIXELS == 10


def tiff(pixels, orientation):
    """A TIFF with one strip, as cameras and scanners write it."""
    height, width, count = pixels.shape
    kind = {"u": 1, "f": 3}[pixels.dtype.kind]
    bits = pixels.dtype.itemsize * 8
    data = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    tags = [(256, width), (257, height), (258, [bits] * count), (259, 1), (262, 2 - (count == 1))]
    tags += [(273, 8), (274, orientation), (277, count), (278, height), (279, pixels.nbytes)]
    tags += [(284, 1)] + [(338, 2)] * (count == 4) + [(339, [kind] * count)]
    start = 8 + len(data)
    more, entries = b"", b""
    for tag, value in tags:
        values = value if isinstance(value, list) else [value]
        if len(values) > 2:
            at = start + 6 + 12 * len(tags) + len(more)
            entries += struct.pack("<HHII", tag, 3, len(values), at)
            more += struct.pack(f"<{len(values)}H", *values)
        else:
            entries += struct.pack("<HHI", tag, 4 if len(values) == 1 else 3, len(values))
            entries += struct.pack("<I" if len(values) == 1 else "<HH", *values)
    head = b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(tags))
    return head + entries + b"\0" * 4 + more


TURNS = {
    1: lambda v: v,
    2: np.fliplr,
    3: lambda v: np.rot90(v, 2),
    4: np.flipud,
    5: lambda v: np.swapaxes(v, 0, 1),
    6: lambda v: np.rot90(v, -1),
    7: lambda v: np.swapaxes(np.rot90(v, 2), 0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("dtype", "count"),
    [(d, c) for d in (np.uint8, np.uint16, np.float32) for c in (1, 3, 4)][:-1],
)
def test_tiff_of_every_depth_and_orientation(tmp_path, orientation, dtype, count):
    pixels = np.random.default_rng(1).integers(0, 256, (6, 9, count)).astype(dtype)
    path, copy = write(tmp_path, tiff(pixels, orientation), "a.tif"), tmp_path / "c.tif"
    size, done = make_usable(path, copy)
    colours = pixels[..., :3].astype(float)
    if dtype != np.uint8:
        colours = (colours - colours.min()) * 255 / np.ptp(colours)
    if count == 4:
        alpha = pixels[..., 3:] / np.iinfo(dtype).max
        colours = colours * alpha + 255 * (1 - alpha)
    shown = read_image(copy if done else path, size)
    assert np.abs(shown - TURNS[orientation](colours)).max() <= 1.5
    if dtype != np.float32 or count == 1:  # of which Pillow reads no tags; OpenCV turns them
        assert ("turned upright (EXIF)" in done) == (orientation != 1)


def test_sixteen_bits_with_alpha_go_on_white(tmp_path):
    rgba = np.random.default_rng(2).integers(1000, 3000, (5, 7, 4)).astype(np.uint16)
    rgba[..., 3] = 65535
    rgba[0, :3, 3] = 0, 32768, 0
    rgba[0, 0, :3] = 60000  # not to be seen, so it does not count among the brightest
    path = write(tmp_path, encoded(".png", rgba), "a.png")
    _, done = make_usable(path, tmp_path / "c.png")
    assert done == ["of more than 8 bits, stretched to 8", "transparent, laid on white"]
    shown = read_image(tmp_path / "c.png")
    seen = rgba[..., :3].astype(float)
    low, high = seen[rgba[..., 3] > 0].min(), seen[rgba[..., 3] > 0].max()
    expected = (seen - low) * 255 / (high - low)
    assert (shown[0, [0, 2]] == 255).all()
    assert np.abs(shown[1:] - expected[1:]).max() <= 0.51
    assert np.abs(shown[0, 1] - (expected[0, 1] + 255) / 2).max() <= 0.6


@pytest.mark.parametrize("params", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
def test_every_truncated_jpeg_is_refused(tmp_path, params):
    jpeg = encoded(".jpg", RGB, *params)
    read_image(write(tmp_path, jpeg))
    for length in [*range(3, len(jpeg) - 1, 11), len(jpeg) - 2]:
        with pytest.raises(ValueError, match=r"x\.img: the image is truncated"):
            read_image(write(tmp_path, jpeg[:length]))


def test_jpeg_with_restarts_a_thumbnail_and_padding_is_whole(tmp_path):
    jpeg = encoded(".jpg", RGB, cv2.IMWRITE_JPEG_RST_INTERVAL, 1)
    body = b"Exif\0\0" + encoded(".jpg", RGB[:4, :4])
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    whole = jpeg[:2] + segment + jpeg[2:]
    assert read_image(write(tmp_path, whole + b"\0" * 40)).shape == RGB.shape
    # The thumbnail's end mark does not count.
    with pytest.raises(ValueError, match="truncated"):
        read_image(write(tmp_path, whole[:-30]))


def test_every_truncated_png_is_refused(tmp_path):
    png = encoded(".png")
    read_image(write(tmp_path, png + b"padding"))
    for length in [*range(8, len(png), 25), len(png) - 1]:
        with pytest.raises(ValueError, match=r"x\.img: the image is truncated"):
            read_image(write(tmp_path, png[:length]))


def test_damaged_png_is_refused(tmp_path):
    png = bytearray(encoded(".png"))
    png[len(png) // 2] ^= 1
    with pytest.raises(ValueError, match=r"x\.img: .*damaged"):
        read_image(write(tmp_path, bytes(png)))


def test_png_with_broken_content_behind_good_checksums(tmp_path):
    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 0, 20, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"x\.img: "):
        read_image(write(tmp_path, png))


def test_missing_empty_and_not_an_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg: no such image; is the image folder"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match=r"x\.img: the file is empty"):
        read_image(write(tmp_path, b""))
    with pytest.raises(ValueError, match=r"x\.img: not an image that OpenCV can read"):
        read_image(write(tmp_path, b"<html>404</html>"))


def test_another_size_than_the_json_says(tmp_path):
    path = write(tmp_path, encoded(".png"))
    read_image(path, (20, 30))
    with pytest.raises(ValueError, match=r"x\.img: the image has 20x30 .* the json says 30x20"):
        read_image(path, (30, 20))
