"""Where a measurement was made."""

import json

import torch

from genie_fn.runtime import provenance


def test_a_description_is_json_and_names_everything():
    found = json.loads(json.dumps(provenance.describe(torch.device("cpu"))))
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert found["device"] and found["command"][0] == "python" and len(found["date"]) == 10
    assert found["commit"] is None or len(found["commit"]) >= 40
