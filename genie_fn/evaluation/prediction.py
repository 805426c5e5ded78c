"""The dynamics model's loss on held-out clips, under the masks of training."""

from torch import Tensor

from genie_fn import dynamics
from genie_fn import world as worlds
from genie_fn.evaluation.clips import Clips
from genie_fn.evaluation.record import Prediction
from genie_fn.world import World


def evaluate(world: World, clips: Clips, key: Tensor) -> Prediction:
    """Cross-entropy in nats per masked token, and the share of these predicted correctly."""
    model = world.dynamics
    batch, frames = clips.ids.shape[:2]
    mask = dynamics.sample_mask(key, batch, frames, model.cfg)
    masked = mask.sum()
    total = {"cross_entropy": 0.0, "accuracy": 0.0}
    for ids, actions, hidden in worlds.chunks(clips.ids, clips.actions, mask):
        _, (scores, _) = dynamics.loss(
            model.params, ids, actions, hidden, model.cfg, backend=model.backend
        )
        share = (hidden.sum() / masked).item()
        for name in total:
            total[name] += share * scores[name].item()
    return Prediction(**total)
