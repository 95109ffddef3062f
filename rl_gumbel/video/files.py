"""Pictures to films: MP4 by ffmpeg, GIF by Pillow."""

import contextlib
import io
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

from rl_gumbel.video.overlay import Frame

MAX_GIF_FPS = 15
"""A GIF leaves out pictures beyond that many in a second."""


def write_mp4(path: Path, frames: Iterable[Frame], fps: int) -> int:
    """Write a film that browsers play (H.264) and return the number of pictures.

    It is there whole or not at all, and so is its directory: both wait for the first picture. Sides
    of the pictures must be even.

    Raises:
        OSError: if it cannot be written.
    """
    import imageio.v2 as imageio

    aside = path.with_name(f".{path.name}.mp4")
    count = 0
    frames = iter(frames)
    first = list(islice(frames, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer = imageio.get_writer(
            aside,
            format="FFMPEG",
            fps=fps,
            codec="libx264",
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-movflags", "+faststart"],
        )
        with contextlib.closing(writer):  # its own `with` leaves ffmpeg running after an error
            for frame in chain(first, frames):
                writer.append_data(frame)
                count += 1
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return count


def encode_gif(frames: Iterable[Frame], fps: int, scale: int = 1) -> bytes:
    """Return an animated GIF that repeats.

    Args:
        frames: at least one, of one size.
        fps: of the frames.
        scale: pixels of a frame for each of the GIF, along an edge.
    """
    from PIL import Image

    skip = max(1, -(-fps // MAX_GIF_FPS))
    pictures = [
        Image.fromarray(frame).reduce(scale).quantize(64, dither=Image.Dither.NONE)
        for i, frame in enumerate(frames)
        if i % skip == 0
    ]
    file = io.BytesIO()
    pictures[0].save(
        file,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=1000 * skip // fps,
        loop=0,
    )
    return file.getvalue()
