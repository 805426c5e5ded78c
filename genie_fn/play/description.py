"""What the page needs to know about a world."""

from genie_fn.bundle import (
    Bundle,
    action_effects,
    arrows_by_motion,
    key_actions,
    name_of,
    play_map,
    recorded_actions,
)
from genie_fn.bundle.action_effects import ActionEffects
from genie_fn.data import games


def describe(bundle: Bundle) -> dict:
    """What the page needs to know about the world."""
    size = bundle.world.tokenizer.cfg
    model = bundle.world.dynamics.cfg
    latent = bundle.world.lam is not None
    mapping = play_map(bundle)
    playable = not latent or mapping is not None
    return {
        "name": name_of(bundle.path),
        "height": size.height,
        "width": size.width,
        "grid": list(size.grid),
        "codes": list(model.sizes),
        "actions": model.actions,
        "occurring": occurring_actions(bundle),
        "kind": "latent" if latent else "recorded",
        "names": list(mapping.names if mapping is not None else bundle.action_names),
        "map": mapping._asdict() if mapping is not None and latent else None,
        "keys": unmapped_keys(bundle),
        "effects": describe_effects(bundle.effects),
        "by_motion": arrows_by_motion(bundle),
        "clips": len(bundle.start_frames),
        "game": playable and games.draws(bundle.dataset.meta, size.height, size.width),
    }


def occurring_actions(bundle: Bundle) -> list[int]:
    """The actions that occurred in training, or where that was not recorded, in the measured transitions;
    all where neither is known."""
    model = bundle.world.dynamics.cfg
    if model.occurring:
        return list(model.occurring)
    shares = bundle.effects.share if bundle.effects is not None else [1.0] * model.actions
    return [action for action, share in enumerate(shares) if share > 0]


def unmapped_keys(bundle: Bundle) -> dict[str, int]:
    """The latent actions of the keys, if the arrow keys are not those of recorded actions."""
    recorded = recorded_actions(bundle)
    keys = key_actions(bundle)
    return {} if keys.keys() == recorded.keys() else keys


def describe_effects(effects: ActionEffects | None) -> list[dict] | None:
    """What the page shows of each action's effect."""
    if effects is None:
        return None
    columns = zip(effects.motion, effects.share, effects.examples, strict=True)
    return [
        {
            "motion": motion,
            "still": motion is not None and action_effects.is_still(motion),
            "text": action_effects.in_words(motion),
            "share": share,
            "examples": examples,
        }
        for motion, share, examples in columns
    ]
