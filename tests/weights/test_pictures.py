"""The published preprocessing: an imported encoder gets the pixels that the image processors of transformers make."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.weights import families
from vadapter.base import resizing
from vadapter.base.errors import UserError
from vadapter.cli.main import main
from vadapter.data.reading import images
from vadapter.weights.recognise import recognise

SHAPES = [(640, 480), (333, 1000), (1200, 90), (64, 64), (50, 37), (224, 224), (1, 400), (257, 1023)]
MEAN = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": 32,
    "resample": 3,
    **MEAN,
}
DINOV2 = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    **MEAN,
}
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3, **MEAN}
SIGLIP2 = {**SIGLIP, "image_processor_type": "SiglipImageProcessorFast", "resample": 2}
KNOWN = {
    "clip": (CLIP, "center_crop bicubic"),
    "old clip": (
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, **MEAN},
        "center_crop bicubic",
    ),
    "dinov2": (DINOV2, "center_crop bicubic 256/224"),
    "siglip": (SIGLIP, "stretch bicubic"),
    "siglip2": (SIGLIP2, "stretch bilinear"),
    "vit": ({"image_processor_type": "ViTImageProcessor", "size": 32, "do_resize": True, **MEAN}, "stretch bilinear"),
}


def picture(width: int, height: int, form: str = "PNG") -> bytes:
    """Soft colours with a hard pattern on them, as in a photograph of text."""
    rng = np.random.RandomState(width + height)
    soft = Image.fromarray(rng.randint(0, 256, (4, 5, 3)).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(soft).astype(int) + 60 * (rng.rand(height, width, 1) > 0.9)
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, form)
    return out.getvalue()


def found(family: str, processor: dict, **changes) -> tuple:
    config = {**families.config(family), **changes}
    made = recognise(families.opened(config, families.tensors(family), preprocessor_config=processor))
    return made.config, made.notes


@pytest.mark.parametrize("name", KNOWN)
def test_the_file_of_the_image_processor_says_how(name):
    config, notes = found("siglip_vision", KNOWN[name][0], image_size=32)
    assert config.resize == KNOWN[name][1]
    assert config.mean == (0.5, 0.4, 0.3) and config.std == (0.2, 0.3, 0.4)
    assert bool(notes) == (name == "dinov2")  # whose pictures have 224 pixels


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"do_resize": False}, "resizes nothing"),
        ({"resample": 9}, "resamples by 9"),
        ({"do_center_crop": False}, "keeps the aspect ratio and cuts nothing off"),
        ({"size": {"height": 30, "width": 40}, "do_center_crop": False}, "resizes to {'height': 30, 'width': 40}"),
        ({"size": {"height": 40, "width": 40}}, "and cuts 32 out"),
        ({"size": {"shortest_edge": 24}, "crop_size": 24}, "encoder.image_size = 24 gives the published pixels"),
    ],
)
def test_a_line_says_where_a_run_does_otherwise(changes, line):
    config, notes = found("siglip_vision", {**CLIP, **changes})
    assert config.resize.startswith("stretch ") or "image_size" in line
    assert line in " ".join(notes)


def test_without_such_a_file_pictures_are_stretched_as_before():
    made = recognise(families.opened(families.config("clip_vision"), families.tensors("clip_vision")))
    assert (made.config.resize, made.notes) == ("stretch", ())


def test_import_writes_it_into_the_gin_file_and_prints_the_line(tmp_path, capsys):
    folder = families.write_folder("dinov2", tmp_path / "dinov2")
    (folder / "preprocessor_config.json").write_text(json.dumps(DINOV2))
    assert main(["import", f"--source={folder}", f"--out={tmp_path / 'out'}"]) == 0
    assert "encoder.resize = 'center_crop bicubic 256/224'" in (tmp_path / "out" / "encoder.gin").read_text()
    assert "makes pictures of 224 pixels" in capsys.readouterr().out


# ---- pixels


def by_hand(data: bytes, size: int, shorter: int) -> np.ndarray:
    """The definition: the whole picture is resized, then cut."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short, long = sorted(image.size)
    longer = int(shorter * long / short)
    image = image.resize(
        (shorter, longer) if image.width <= image.height else (longer, shorter), Image.Resampling.BICUBIC
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "ratio"), [(32, ""), (35, ""), (28, " 256/224")])
def test_a_center_crop_is_what_is_left_of_the_whole(shape, size, ratio):
    data = picture(*shape)
    ours = images.decode(data, size, f"center_crop bicubic{ratio}")
    theirs = by_hand(data, size, 32 if ratio else size)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_large_photograph_is_decoded_whole_where_the_filter_is_named():
    data = picture(1600, 1200, "JPEG")
    wanted = np.asarray(Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.BILINEAR))
    assert (images.decode(data, 64, "stretch bilinear") == wanted).all()
    assert (images.decode(data, 64, "stretch") != wanted).any()


def test_a_very_long_picture_needs_little_memory():
    strip = Image.new("RGB", (60_000, 2), "red")
    assert (images.resize(strip, 224, "center_crop bicubic") == (255, 0, 0)).all()


@pytest.mark.parametrize(
    "text",
    ["", "squeeze", "stretch sharp", "stretch 256/224", "center_crop 1/2", "center_crop bicubic 0", "crop bicubic 2"],
)
def test_a_way_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="Expected a resize mode of stretch, crop, pad, center_crop"):
        resizing.parse(text)


@pytest.mark.parity
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "dinov2"])
def test_transformers_makes_the_same_pixels(kind, form):
    transformers = pytest.importorskip("transformers")
    names = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip", "dinov2": "Bit"}
    settings = {key: value for key, value in KNOWN[kind][0].items() if not key.endswith("_type")}
    processor = getattr(transformers, f"{names[kind]}ImageProcessorPil")(
        **settings, do_rescale=False, do_normalize=False
    )
    size = 224 if kind == "dinov2" else 32
    for shape in SHAPES:
        data = picture(*shape, form)
        theirs = processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0]
        ours = images.decode(data, size, KNOWN[kind][1])
        assert np.abs(ours.astype(float) - theirs.transpose(1, 2, 0)).max() <= 1, shape
