"""What tests of engines share."""

import threading

from genie_fn.play.engine import Engine


def wait_until_ready(engine: Engine, programs: str = "compiled") -> None:
    """Wait until an engine has chosen its programs, and check that they are these.

    They may be chosen before `when_ready` is called, and then nothing calls back.
    """
    ready = threading.Event()
    engine.when_ready(ready.set)
    assert engine.ready == programs or ready.wait(60)
    assert engine.ready == programs
