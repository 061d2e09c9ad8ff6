import struct
import zlib

import cv2
import numpy as np
import pytest

from lib.data.images import read_image

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


def test_exif_orientation_is_ignored(tmp_path):
    jpeg = encoded(".jpg")
    turned = with_exif_rotation(jpeg)
    # The block is a real one: OpenCV does turn the image when it is let.
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (30, 20, 3)
    upright = read_image(write(tmp_path, jpeg, "a.jpg"))
    assert np.array_equal(read_image(write(tmp_path, turned, "b.jpg"), (20, 30)), upright)


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
