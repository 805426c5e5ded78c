"""metrics.json is read as written, earlier schemas are migrated, anything else is refused."""

import json
from dataclasses import asdict, replace

import pytest

from genie_fn.errors import UserError
from genie_fn.evaluation import record_file
from genie_fn.evaluation.record import Protocol
from tests.evaluation import examples

FORMER = {new: old for old, new in record_file.METHODS.items()}
FORMER_AGREEMENT = {new: old for old, new in record_file.AGREEMENT.items()}


@pytest.fixture(scope="module")
def evaluation():
    return examples.evaluation()


def test_a_record_is_read_as_it_was_written(evaluation, tmp_path):
    path = record_file.write(evaluation, tmp_path)
    assert record_file.read(tmp_path) == evaluation
    stored = json.loads(path.read_text())
    stored["of_schema"] = stored.pop("schema")
    assert stored["of_schema"] == record_file.SCHEMA and stored == asdict(evaluation)


def without_scores(evaluation, *names):
    """The record without these scores of rollouts."""
    missing = {name: {} for name in names}
    rollouts = {
        prompt: Protocol(replace(protocol.all, **missing), replace(protocol.moving, **missing))
        for prompt, protocol in evaluation.rollouts.items()
    }
    return replace(evaluation, rollouts=rollouts)


def unaligned(evaluation, schema):
    """What is read from a record of an earlier schema, in which frames were not aligned."""
    evaluation = without_scores(evaluation, "aligned", "position_error")
    return replace(evaluation, of_schema=schema)


def schema_4(evaluation) -> dict:
    """The same record in schema 4."""
    record = asdict(evaluation)
    del record["of_schema"]
    for protocol in record["rollouts"].values():
        for scores in protocol.values():
            del scores["aligned"], scores["position_error"]
    return record | {"schema": 4}


def without_kept_ids(evaluation, schema):
    """What is read from a record of an earlier schema, in which ids that are kept were not counted."""
    evaluation = unaligned(evaluation, schema)
    rollouts = replace(evaluation.actions.long_rollouts, kept=None, recorded_kept=None)
    actions = replace(evaluation.actions, long_rollouts=rollouts)
    return replace(evaluation, actions=actions)


def schema_3(evaluation) -> dict:
    """The same record in schema 3."""
    record = schema_4(evaluation)
    for name in ("kept", "recorded_kept"):
        del record["actions"]["long_rollouts"][name]
    return record | {"schema": 3}


def without_edges(evaluation, schema):
    """What is read from a record of an earlier schema, in which edges were not measured either."""
    evaluation = without_scores(without_kept_ids(evaluation, schema), "edges")
    return replace(evaluation, reconstruction=replace(evaluation.reconstruction, edges=None))


def schema_2(evaluation) -> dict:
    """The same record in schema 2."""
    record = schema_3(evaluation)
    del record["reconstruction"]["edges"]
    for protocol in record["rollouts"].values():
        for scores in protocol.values():
            del scores["edges"]
    return record | {"schema": 2}


@pytest.mark.parametrize(
    ("schema", "stored", "expected"),
    [(4, schema_4, unaligned), (3, schema_3, without_kept_ids), (2, schema_2, without_edges)],
)
def test_an_earlier_record_is_read_and_written_as_one(
    evaluation, tmp_path, schema, stored, expected
):
    (tmp_path / "metrics.json").write_text(json.dumps(stored(evaluation)))
    found = record_file.read(tmp_path)
    assert found == expected(evaluation, schema)
    record_file.write(found, tmp_path)
    assert record_file.read(tmp_path) == found


def former(evaluation) -> dict:
    """The same record in schema 1."""
    record = schema_2(evaluation)
    actions = record["actions"]
    agreement = {
        kind: {FORMER_AGREEMENT.get(name, name): value for name, value in found.items()}
        for kind, found in actions["recorded"].items()
        if kind in ("all", "sides")
    }
    model = actions.pop("inverse_dynamics")
    ratio = {kind: model[kind].pop("ratio") for kind in ("all", "sides")}
    probe = {
        kind: {"information": model[kind]["nmi"], "accuracy": model[kind]["accuracy"]}
        for kind in ratio
    }
    actions["true"] = actions.pop("recorded") | agreement
    actions["probe"] = model | probe | {"ratio": ratio}
    actions["held"] = actions.pop("held_keys")
    for protocol in record["rollouts"].values():
        for scores in protocol.values():
            for metric, curves in scores.items():
                scores[metric] = {FORMER.get(name, name): curve for name, curve in curves.items()}
    return record | {"schema": 1, "dynamics": record.pop("prediction")}


def test_a_record_of_schema_1_is_migrated(evaluation, tmp_path):
    record = former(evaluation)
    assert "own" in record["rollouts"]["1"]["all"]["psnr"]
    (tmp_path / "metrics.json").write_text(json.dumps(record))
    assert record_file.read(tmp_path) == without_edges(evaluation, 1)


def test_held_keys_and_kinds_of_schema_1_are_migrated(evaluation, tmp_path):
    record = former(evaluation)
    counts = {"frames": 10, "starts": 3, "right_way": 2, "share": 0.6667, "apart": 3}
    moves = {"LEFT": [-1, -2, 0], "RIGHT": [1, 2, 3]}
    record["actions"]["held"] = counts | {"dreamed": moves, "real": moves}  # language: allow
    record["actions"]["kind"] = "true"
    del record["actions"]["true"], record["actions"]["probe"]
    (tmp_path / "metrics.json").write_text(json.dumps(record))
    actions = record_file.read(tmp_path).actions
    assert (actions.kind, actions.recorded, actions.inverse_dynamics) == ("recorded", None, None)
    assert actions.held_keys.correct == 2 and actions.held_keys.separated == 3
    assert actions.held_keys.generated == actions.held_keys.recorded == moves


def test_what_cannot_be_read_is_refused(evaluation, tmp_path):
    with pytest.raises(UserError, match="evaluate.py --cfg.run"):
        record_file.read(tmp_path)
    path = tmp_path / "metrics.json"
    for content in ("{", "[]", "1", '{"schema": 2}', '{"schema": 1, "actions": 3}'):
        path.write_text(content)
        with pytest.raises(UserError, match="damaged"):
            record_file.read(tmp_path)
    path.write_text(json.dumps(asdict(evaluation) | {"schema": 0}))
    with pytest.raises(UserError, match="schema 0"):
        record_file.read(tmp_path)
    path.write_text(json.dumps({"schema": record_file.SCHEMA + 1, "new": 1}))
    with pytest.raises(UserError, match=f"^{path} was written by a newer version of genie_fn"):
        record_file.read(tmp_path)
