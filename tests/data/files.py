"""Media files for tests, made here."""

import numpy as np
from PIL import Image


def picture(path, colour=(200, 30, 30), size=(40, 30), **options):
    """Writes an image of one colour in the format of the path's ending."""
    Image.new("RGB", size, colour).save(path, **options)
    return path


def clip(path, shades, size=(64, 48), rotation=None):
    """Writes an MP4 with one grey frame a shade."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for shade in shades:
            pixels = np.full((size[1], size[0], 3), shade, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def copy_to_ram(folder, to):
    """Copies the files of a folder to `ram://...`, which TensorFlow reads as it does gs://."""
    import tensorflow as tf

    tf.io.gfile.makedirs(to)
    for path in folder.iterdir():
        if path.is_file():
            tf.io.gfile.copy(str(path), f"{to}/{path.name}", overwrite=True)
