"""Datasets of video: the store on disk, clips drawn from it, the token cache, games and imported videos."""

from genie_fn.data.clips import Batches, batches, clip_offsets, clip_starts, eval_clips
from genie_fn.data.storage import BLOCK, CHUNK, MANIFEST, SPLITS, Segment
from genie_fn.data.store import (
    CHECKED,
    DTYPES,
    Batch,
    DamagedClips,
    Recording,
    Store,
    alone,
    append_segments,
    blocks,
    commit,
    create,
    next_offset,
    open_store,
    read_clips,
    read_segment,
    reserve,
    split_of,
    verify,
    write_segment,
)
