"""The marker `proves`: what it adds to a test, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests import proofs
from tests.proofs import OPS, Proof, proof_of


class Item(SimpleNamespace):
    """A test with one marker, or none."""

    nodeid = "tests/test_x.py::test_y"

    def get_closest_marker(self, name: str) -> Any:
        return getattr(self, name, None)

    def add_marker(self, name: str) -> None:
        self.added.append(name)


def marked(*ops: str, **options: str) -> Item:
    return Item(proves=pytest.mark.proves(*ops, **options).mark, added=[])


def test_a_test_proves_what_its_marker_names() -> None:
    assert proof_of(Item()) == Proof((), None)
    assert proof_of(marked("mix_clips")) == Proof(("mix_clips",), None)
    assert proof_of(marked(*OPS, backend="triton")) == Proof(OPS, "triton")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (marked("mix_clip", backend="cpp"), r"test_x.py::test_y: .* 'mix_clip' is no op; the ops are .*mix_clips"),
        (marked("mix_clips", backend="cpu"), "'cpu' is no back end; the back ends are reference, cpp, triton, cuda"),
        (marked(backend="cpp"), "it names no op"),
        (marked("mix_clips", on="cpp"), "it has no argument 'on'; write backend="),
    ],
)
def test_a_misspelt_marker_ends_the_collection(item: Item, message: str) -> None:
    with pytest.raises(pytest.UsageError, match=message):
        proofs.pytest_collection_modifyitems([item])


def test_ops_and_back_ends_become_markers_of_their_own() -> None:
    items = [marked("mix_clips", backend="cuda"), marked("graph_conv", backend="cpp"), marked("draw_plan"), Item(added=[])]
    proofs.pytest_collection_modifyitems(items)
    assert [item.added for item in items] == [["mix_clips", "cuda", "gpu"], ["graph_conv", "cpp"], ["draw_plan"], []]


def test_a_test_is_skipped_where_its_back_end_cannot_run() -> None:
    proofs.pytest_runtest_setup(marked("mix_clips"))
    proofs.pytest_runtest_setup(marked("mix_clips", backend="cpp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs, "unavailable", lambda backend, device: f"{device} is busy")
        with pytest.raises(pytest.skip.Exception, match="cuda: cuda:0 is busy"):
            proofs.pytest_runtest_setup(marked("mix_clips", backend="cuda"))


def test_every_op_is_proved_on_the_back_ends_that_have_it(request: pytest.FixtureRequest) -> None:
    """Collected in this process; nothing runs."""
    seen: set[tuple[str, str]] = set()

    class Proofs:
        def pytest_collection_finish(self, session: pytest.Session) -> None:
            seen.update((op, proof.backend) for proof in map(proof_of, session.items) for op in proof.ops if proof.backend)

    folder = str(request.config.rootpath / "tests" / "kernels")
    assert pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", folder], plugins=[Proofs()]) == 0
    wanted = {(op, backend) for op in OPS for backend in ("cpp", "triton")}
    assert wanted <= seen
    assert {("coalition_inputs", "cuda"), ("mix_clips", "cuda")} <= seen
