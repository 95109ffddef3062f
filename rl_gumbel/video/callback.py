"""Clips of training in TensorBoard."""

from itertools import islice

from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.callbacks import MarkCallback
from rl_gumbel.tensorboard import add_image, find_writer
from rl_gumbel.video.episodes import film
from rl_gumbel.video.files import encode_gif

TAG = "video/episode"
MAX_FRAMES = 200
"""Of a clip."""
SCALE = 2
"""Pixels of a film for each of a clip, along an edge."""


class VideoCallback(MarkCallback):
    """Write the start of an episode of argmax actions as an animated picture, now and then.

    Training goes on as without: no random number of its stream is drawn.

    Args:
        env: an environment with pictures that training does not use.
        interval: steps of training between two clips, at least 1.
        fps: frames per second.
    """

    def __init__(self, env: VecEnv, interval: int, fps: int) -> None:
        super().__init__()
        self.env = env
        self.interval = interval
        self.fps = fps

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self.interval

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            # Several environments step at once, so the count may pass more than one mark.
            self._next += self.interval * (1 + (self.num_timesteps - self._next) // self.interval)
            self._record()
        return True

    def _on_training_end(self) -> None:
        self.env.close()

    def _record(self) -> None:
        writer = find_writer(self.logger)
        if writer is None:
            return
        frames = list(islice(film(self.model, self.env, 1, self.fps), MAX_FRAMES))
        add_image(writer, TAG, encode_gif(frames, self.fps, SCALE), self.num_timesteps)
