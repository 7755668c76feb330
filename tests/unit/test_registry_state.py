"""The state: what each operation does, what is refused, and that replay is pure."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core.exceptions import ConflictError, IntegrityError, MMError, NotFoundError
from mm_core.registry import Claim, ModelRegistry
from mm_core.registry.operations import RULES, apply_all, operation, transition
from mm_core.registry.state import KEPT_OPERATIONS, State
from mm_core.schemas import ModelStatus
from mm_core.testing.registry import claimed, fill, registered
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


@pytest.fixture
def registry(tmp_path):
    return ModelRegistry(MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}")))


# -- folders never nest


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        (("a", "b"), ("a/b", "c")),
        (("a", "b"), ("a/b/c", "d")),
        (("a/b", "c"), ("a", "b")),
        (("a/b/c", "d"), ("a", "b")),
        (("A", "B"), ("a/b", "c")),
        (("Stra\u00dfe/x", "c"), ("strasse", "x")),
        (("caf\u00e9", "b"), ("Cafe\u0301/b", "c")),
    ],
)
def test_version_folders_never_nest(registry, held, asked):
    """A version whose folder would lie in, or hold, another's is refused, in any spelling."""
    fill(registry, *held)
    with pytest.raises(ConflictError):
        registry.begin(*asked, wait=False)
    registry.remove(*held)
    with pytest.raises(ConflictError):
        registry.begin(*asked, wait=False)
    registry.sweep(*held)
    registry.swept(*held)
    assert isinstance(registry.begin(*asked, wait=False), Claim)


@pytest.mark.parametrize(
    ("held", "asked"),
    [(("a", "b"), ("a", "bc")), (("a", "b"), ("ab", "c")), (("a/b", "c"), ("a", "c"))],
)
def test_neighbours_are_fine(registry, held, asked):
    """Folders beside each other are no conflict, however alike their names are."""
    fill(registry, *held)
    assert fill(registry, *asked).version == asked[1]


def test_an_entry_elsewhere_has_no_folder_here(registry):
    """A registered path does not stand in the way of a pull."""
    registry.add_model(registered("a", "b"))
    assert fill(registry, "a/b", "c")


# -- what is refused


def test_operations_on_nothing_are_not_found(registry):
    """Removing, sweeping away or naming what is not there is NotFoundError."""
    fill(registry, "m", "1")
    registry.remove("m", "1")
    for action in (
        lambda: registry.remove("m", "1"),
        lambda: registry.remove("m", "9"),
        lambda: registry.remove("x", "1"),
        lambda: registry.swept("x", "1"),
        lambda: registry.set_alias("m", "prod", "1"),
        lambda: registry.set_alias("x", "prod", "1"),
        lambda: registry.remove_alias("m", "prod"),
    ):
        with pytest.raises(NotFoundError):
            action()


def test_a_version_under_claim_is_not_removed(registry):
    """While it is being pulled a version is neither removed nor swept."""
    claimed(registry, "m", "1")
    for action in (registry.remove, registry.sweep, registry.swept):
        with pytest.raises(ConflictError):
            action("m", "1")


def test_one_refused_operation_refuses_its_commit(registry):
    """Operations of one call are done all or none."""
    claim = claimed(registry, "m", "1")
    state = registry._log.refresh()
    good = operation("abandon", "m", version="1", claim=claim.id)
    bad = operation("unalias", "m", alias="nope")
    with pytest.raises(NotFoundError):
        registry._commit([good, bad])
    assert registry._log.refresh() == state


def test_a_registered_download_can_become_a_pull(registry):
    """A DOWNLOADING entry without a claim may be begun; its path becomes the store's folder."""
    registry.add_model(registered("m", "1", status=ModelStatus.DOWNLOADING))
    entry = fill(registry, "m", "1")
    assert str(entry.path).endswith("models/m/1")


# -- replay


@pytest.fixture(scope="module")
def long_history(tmp_path_factory):
    sink = MemorySink(MemorySink.Config(root=f"memory:/{tmp_path_factory.mktemp('s')}"))
    registry = ModelRegistry(sink)
    for version in "123":
        fill(registry, "org/model", version, aliases=("prod", "v" + version))
    registry.add_model(registered("other", "1", metadata={"x": [1]}))
    registry.abandon(claimed(registry, "org/model", "4"), "cut")
    claimed(registry, "org/model", "5").close()
    registry.remove("org/model", "1")
    registry.sweep("org/model", "1")
    registry.swept("org/model", "1")
    registry.remove_alias("org/model", "v2")
    registry.update_model_status("other", ModelStatus.FAILED)
    return registry


def test_each_operation_occurs_in_the_history(long_history):
    """The history that these tests replay has an operation of each kind."""
    done = {o["op"] for record in long_history.history() for o in record.operations}
    assert done == set(RULES)


def test_a_state_survives_a_checkpoint(long_history):
    """A state is JSON data and comes back equal."""
    state = long_history._log.refresh()
    assert State.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_replay_changes_no_earlier_state(long_history):
    """Each state of a history stays what it was while later ones are made from it."""
    states, shown = [State()], []
    for record in long_history.history():
        shown.append(json.dumps(states[-1].to_json()))
        states.append(apply_all(states[-1], record.operations, record.seq, record.sha256))
    assert [json.dumps(state.to_json()) for state in states[:-1]] == shown
    assert states[-1] == long_history._log.refresh()


@pytest.mark.parametrize("raw", [{}, {"seq": 1, "head": "", "models": [], "operations": []}])
def test_a_broken_checkpoint_is_an_integrity_error(raw):
    """What is no state is refused as such."""
    with pytest.raises(IntegrityError):
        State.from_json(raw)


def test_a_broken_operation_is_an_integrity_error():
    """An operation without its fields is named with its commit."""
    with pytest.raises(IntegrityError, match="commit 7"):
        apply_all(State(), [{"op": "add", "id": "x"}], 7, "")


def test_remembered_operations_are_bounded():
    """Only the latest ids are kept, so that a state does not grow with its history."""
    state = State()
    for seq in range(KEPT_OPERATIONS + 20):
        item = operation("alias", "m", id=str(seq), version="1", alias="a")
        state = apply_all(state, [item], seq + 1, "")
    assert len(state.operations) == KEPT_OPERATIONS
    assert state.has_done([{"id": str(seq)}])
    assert not state.has_done([{"id": "0"}])


NAMES = st.sampled_from(["a", "A", "a/b", "a/b/c", "b"])
LABELS = st.sampled_from(["b", "c", "B"])
STEPS = st.lists(st.tuples(st.sampled_from(sorted(RULES)), NAMES, LABELS), max_size=40)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_no_order_of_operations_breaks_the_rules(steps):
    """Whatever is tried in whatever order: folders never nest, aliases name what is AVAILABLE,
    and an AVAILABLE version was added by the claim that was open."""
    state, number = State(), 0
    for op, model_id, version in steps:
        number += 1
        row = state.row(model_id, version) or {}
        fields = {
            "begin": {"claim": str(number)},
            "add": {"claim": row.get("claim", "none"), "manifest": "m"},
            "abandon": {"claim": row.get("claim", "none")},
            "register": {"status": "AVAILABLE", "path": "/x"},
            "status": {"status": "FAILED"},
            "alias": {"alias": "prod"},
            "unalias": {"alias": "prod"},
        }.get(op, {})
        item = operation(op, model_id, version=version, **fields)
        try:
            transition(state, [item])
        except MMError:
            continue
        state = apply_all(state, [item], number, "")
        folders = [
            f"{record.model_id}/{row['version']}/".casefold()
            for record, row in state.rows()
            if "path" not in row
        ]
        assert not [
            (one, other)
            for one in folders
            for other in folders
            if one is not other and other.startswith(one)
        ]
        for record in state.models.values():
            assert record.versions
            for _, named in record.aliases.values():
                assert record.row(named)["status"] in ("AVAILABLE", "FAILED")
