"""The step on resident data: the trainer's numbers bit for bit, and nothing that the host would wait for."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shapmix import reference
from shapmix.data.clips import Splits
from shapmix.data.order import epoch_batches, epoch_order
from shapmix.data.sampling import ClipSampler, mean_motion
from shapmix.data.synthetic import make_synthetic
from shapmix.draws.augment import AugmentConfig
from shapmix.mixing import mixers
from shapmix.mixing.estimators import drawn_on_device
from shapmix.mixing.mixer import ShapMix
from shapmix.mixing.rule import Rule
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.networks.frozen import freeze, hold_frozen
from shapmix.networks.synced_norm import sync_norms
from shapmix.training import step
from shapmix.training.step import WARM_UP, StepResult, TrainingStep, check_capturable, start_momentum

FRAMES, BATCH, STEPS = 16, 8, 4
EVERYTHING = AugmentConfig(
    mirror=0.5, swap=0.5, scale=(0.9, 1.1), stretch=(0.9, 1.1), shear=0.1, rotation=0.2, jitter=0.01, reverse=0.5,
    speed=(0.8, 1.2), part_drop=0.2, joint_drop=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_synthetic(num_classes=4, n_max=16, imbalance=2, val_per_class=1, test_per_class=1)


class Setup:
    """A small network, its mixer and its optimizer, the same each time."""

    def __init__(self, splits: Splits, mode: str, device: str = "cpu", *, fused: bool = True, **options: Any) -> None:
        store = splits.store
        torch.manual_seed(0)
        self.sampler = ClipSampler(store, "crop", "joint", FRAMES, seed=3, augment=options.pop("augment", AugmentConfig()))
        self.network: nn.Module = CTRGCN(
            store.layout, store.num_classes, num_people=store.num_people, in_channels=3, widths=(8, 16), halve=(1,)
        ).to(device)
        if frozen := options.pop("freeze", ()):
            freeze(self.network, frozen, "fc")
            hold_frozen(self.network)
        motion = mean_motion(self.sampler, splits.train)
        self.mixer = ShapMix(store.layout, splits.class_counts(), motion, mix=mode, warmup_steps=1, **options).to(device)
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=fused)

    def step(self, **options: Any) -> TrainingStep:
        return TrainingStep(self.network, self.mixer, self.optimizer, self.sampler, BATCH, **options)

    def state(self) -> dict[str, Tensor]:
        return {**self.network.state_dict(), **{f"mixer.{key}": value for key, value in self.mixer.state_dict().items()}}


@pytest.mark.parametrize("clips_given", [False, True])
@pytest.mark.parametrize("estimator", drawn_on_device())
@pytest.mark.parametrize("mode", ["shapmix", "stmix", "mixup", "none"])
def test_it_is_the_plain_loop_bit_for_bit(splits: Splits, mode: str, estimator: str, clips_given: bool) -> None:
    check_plain_loop(splits, mode, clips_given=clips_given, estimator=estimator)


def test_augmented_it_is_the_plain_loop_bit_for_bit(splits: Splits) -> None:
    check_plain_loop(splits, "shapmix", clips_given=False, augment=EVERYTHING)


def test_on_a_budget_it_is_the_plain_loop_bit_for_bit(splits: Splits) -> None:
    check_plain_loop(splits, "shapmix", clips_given=False, estimator="official", budget=1.0, every=2)


RULES = [Rule(partner="inverse", outside="weigh"), Rule(align=True, outside="smooth", unit="layout")]


@pytest.mark.parametrize("rule", RULES)
def test_with_other_rules_it_is_the_plain_loop_and_reads_nothing(
    splits: Splits, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_plain_loop(splits, "shapmix", clips_given=False, rule=rule)
    for number in (0, 1):
        check_reads(splits, number, monkeypatch, rule=rule)


def check_plain_loop(splits: Splits, mode: str, *, clips_given: bool, **options: Any) -> None:
    theirs, ours = Setup(splits, mode, **options), Setup(splits, mode, **options)
    step = ours.step(clips_given=clips_given)
    batches = epoch_batches(epoch_order(splits.train[: BATCH * STEPS], 1, 0), BATCH)
    for number, chosen in enumerate(batches):
        clips, labels = theirs.sampler.training(chosen, number), splits.store.labels[chosen]
        theirs.network.train()
        theirs.mixer.observe(theirs.network, clips, labels, number)
        batch = theirs.mixer.mix(clips, labels, number)
        logits = theirs.network(batch.clips)
        clean, mixed = theirs.mixer.loss(logits, batch)
        theirs.optimizer.zero_grad(set_to_none=True)
        (clean + mixed).backward()
        theirs.optimizer.step()

        result = step(chosen, number, clips if clips_given else None)
        assert (result.clean.item(), result.mixed.item()) == (clean.item(), mixed.item())
        assert int(result.right) == int((logits[: len(labels)].argmax(1) == labels).sum())
    assert number == STEPS - 1
    expected = theirs.state()
    for name, tensor in ours.state().items():
        assert torch.equal(tensor, expected[name]), name


class NoHostReads(TorchDispatchMode):
    """Raises where a value of a tensor would reach the host, or decide about a shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "nonzero", "unique", "_unique2", "unique_dim", "masked_select", "equal"):
            raise AssertionError(f"{name} reads a value")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("estimator", drawn_on_device())
@pytest.mark.parametrize(("number", "frozen"), [(0, ()), (1, ()), (1, ("backbone",)), (1, ("*.bn", "l1"))])
def test_nothing_is_read_back(
    splits: Splits, number: int, frozen: tuple[str, ...], estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_reads(splits, number, monkeypatch, estimator=estimator, freeze=frozen)


@pytest.mark.parametrize("estimator", ["official", "naive"])
@pytest.mark.parametrize("number", [1, 2])
def test_nothing_is_read_back_on_a_budget(splits: Splits, number: int, estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_reads(splits, number, monkeypatch, estimator=estimator, budget=0.5, every=2)


def check_reads(splits: Splits, number: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    setup = Setup(splits, "shapmix", augment=EVERYTHING, **options)
    setup.step()(splits.train[:BATCH], 0)  # what is made once
    step = setup.step()
    # the C++ back end takes the step's number by value, from memory that is the host's
    monkeypatch.setattr(mixers, "draw_plan", lambda *tensors, backend, **options: reference.draw_plan(*tensors, **options))

    def read(self: Tensor, *_: object) -> None:
        raise AssertionError("tolist, numpy or cpu reads a value")

    for name in ("tolist", "numpy", "cpu", "__array__"):
        monkeypatch.setattr(Tensor, name, read)
    with NoHostReads():
        result = step(splits.train[:BATCH], number)
    monkeypatch.undo()
    assert result.clean.isfinite()
    assert all(weight.requires_grad == (weight.grad is not None) for weight in setup.network.parameters())


def test_the_guard_sees_a_read() -> None:
    with NoHostReads(), pytest.raises(AssertionError, match="_local_scalar_dense reads a value"):
        bool(torch.ones(1) > 0)
    with NoHostReads(), pytest.raises(AssertionError, match="nonzero reads a value"):
        torch.nonzero(torch.ones(3))


def test_what_draws_on_the_host_is_refused(splits: Splits) -> None:
    setup = Setup(splits, "shapmix", estimator="chain")
    with pytest.raises(ValueError, match="estimator 'chain' is drawn on the host"):
        setup.step()
    clips = setup.sampler.training(splits.train[:BATCH], 0)
    with pytest.raises(ValueError, match="estimator 'chain' is drawn on the host; leave the counter out"):
        setup.mixer.observe(setup.network, clips, splits.store.labels[splits.train[:BATCH]], 0, counter=torch.tensor(0))
    setup = Setup(splits, "shapmix")
    setup.sampler = ClipSampler(splits.store, "frames", "joint", FRAMES)
    with pytest.raises(ValueError, match="pipeline 'frames' draws on the host"):
        setup.step()
    setup.step(clips_given=True)
    with pytest.raises(ValueError, match="clips are given with every call of a step that was made with clips_given=True"):
        Setup(splits, "shapmix").step()(splits.train[:BATCH], 0, clips)
    with pytest.raises(ValueError, match=r"rule.fresh takes two samplings of the clips; train with it in a plain loop"):
        Setup(splits, "shapmix", rule=Rule(fresh=True)).step()
    with pytest.raises(ValueError, match="cannot be captured as a CUDA graph"):
        Setup(splits, "shapmix").step(capture=True)
    assert step.reads_on_host(Setup(splits, "shapmix", backend="reference").mixer) == (
        "mix_clips runs on back end 'reference', which reads values on the host"
    )
    with pytest.raises(ValueError, match=r"chosen has shape \[3\]; give \[8\]"):
        Setup(splits, "shapmix").step()(splits.train[:3], 0)


def test_optimizers_that_a_graph_cannot_hold_are_refused() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="SGD reads its state on the host; make it with fused=True"):
        check_capturable(torch.optim.SGD([parameter], lr=0.1), torch.device("cuda"))
    check_capturable(torch.optim.SGD([parameter], lr=0.1, fused=True), torch.device("cuda"))


class Poison(torch.autograd.Function):
    """Itself, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


class Guarded(Setup):
    """A setup that can be made to fail: by clips of NaN, or by an infinite gradient of a finite loss."""

    poisoned = False

    def __init__(self, splits: Splits, optimizer: str, **options: Any) -> None:
        super().__init__(splits, "shapmix", estimator="exact", **options)
        if optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-2, fused=True)
        elif optimizer == "sgd":
            self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9)
        self.network.fc.register_forward_hook(lambda module, given, result: Poison.apply(result) if self.poisoned else result)

    def everything(self) -> dict[str, Tensor]:
        numbered = enumerate(self.optimizer.state.values())
        states = {f"{place}.{key}": value for place, state in numbered for key, value in state.items() if value is not None}
        return self.state() | states


@pytest.mark.parametrize("optimizer", ["fused sgd", "sgd", "adamw"])
@pytest.mark.parametrize("cause", ["clip", "gradient"])
@pytest.mark.parametrize("first", [0, 2])
def test_a_step_that_is_not_finite_is_left_out(splits: Splits, optimizer: str, cause: str, first: int) -> None:
    """Weights, optimizer, running statistics and the saliency go on as if it had not been, the first step of all too."""
    with_it, without = Guarded(splits, optimizer), Guarded(splits, optimizer)
    batches = list(epoch_batches(epoch_order(splits.train[: BATCH * STEPS], 1, 0), BATCH))
    for setup in (with_it, without):
        step = setup.step(clips_given=True)
        for number, chosen in enumerate(batches):
            clips = setup.sampler.training(chosen, number)
            if number != first:
                result = step(chosen, number, clips)
                assert torch.stack([value.double() for value in result]).isfinite().all()
            elif setup is with_it:
                before = {name: value.clone() for name, value in setup.everything().items()}
                setup.poisoned = cause == "gradient"
                if cause == "clip":
                    clips[1, :, 3] = torch.nan
                result = step(chosen, number, clips)
                setup.poisoned = False
                assert bool((result.clean + result.mixed).isfinite()) == (cause == "gradient")
                assert not result.gradient.isfinite()
                after = setup.everything()
                assert all(torch.equal(value, after[name]) for name, value in before.items())
                assert all(value.isfinite().all() for value in after.values())
    expected = without.everything()
    for name, value in with_it.everything().items():
        assert torch.equal(value, expected[name]), name


def test_fused_sgd_needs_its_momentum_begun() -> None:
    """The reason for `start_momentum`: torch's own first step, left out on the device, leaves momentum as memory was."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, fused=True)
    start_momentum(optimizer)
    for found, gradient in ((1.0, torch.nan), (0.0, 1.0)):
        parameter.grad = torch.full((3,), gradient)
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], torch.ones(3))
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.9))
    with pytest.raises(ValueError, match="dampening makes the first step another one"):
        check_capturable(torch.optim.SGD([parameter], lr=0.1, momentum=0.9, dampening=0.5, fused=True), torch.device("cuda"))


class PretendedGraphs:
    """What the step asks of torch.cuda, recorded; a graph that is replayed runs the step it was recorded of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.live: weakref.WeakSet[Any] = weakref.WeakSet()
        self.current: list[object] = []
        self.waits: list[str] = []
        pretended = self

        class Graph:
            def __init__(self) -> None:
                pretended.live.add(self)

            def replay(self) -> None:
                pretended.waits.append("replay")

        class Stream:
            def __init__(self, device: object = None) -> None:
                pretended.current.append(device)

            def wait_stream(self, other: object) -> None:
                pretended.waits.append("wait")

        def device(name: object) -> Any:
            pretended.current.append(name)
            return nullcontext()

        monkeypatch.setattr(step, "check_capturable", lambda optimizer, device: None)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: nullcontext())
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "device", device)


def test_a_graph_is_of_one_phase_and_of_the_tensors_it_was_made_of(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its device is the mixer's own, one graph lives at a time, and tensors that move are followed."""
    pretended = PretendedGraphs(monkeypatch)
    setup = Setup(splits, "shapmix")
    setup.mixer.warmup_steps = setup.mixer.replace_steps = WARM_UP + 2
    step = setup.step(capture=True)
    chosen, numbers = splits.train[:BATCH], count()
    setup.optimizer.param_groups[0]["lr"] = 0.0

    def run(steps: int) -> int:
        pretended.waits.clear()
        for _ in range(steps):
            step(chosen, next(numbers))
        gc.collect()
        assert len(pretended.live) <= 1
        return pretended.waits.count("replay")

    assert run(WARM_UP + 2) == 2  # the warm-up epoch of the saliency
    assert run(WARM_UP) == 0  # another phase: warmed up anew, without the former graph
    assert len(pretended.live) == 0
    assert run(2) == 2
    setup.optimizer.load_state_dict(setup.optimizer.state_dict())
    assert run(WARM_UP + 1) == 1
    parameter = next(setup.network.parameters())
    parameter.data = parameter.data.clone()
    assert run(WARM_UP + 1) == 1
    buffer = next(setup.network.buffers())
    buffer.data = buffer.data.clone()
    assert run(WARM_UP + 1) == 1
    assert set(pretended.current) == {setup.mixer.saliency.device}


def test_steps_with_and_without_a_measurement_have_a_graph_each(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind is warmed up and captured once; gradients of the parameters are those of the graph that ran last."""
    pretended = PretendedGraphs(monkeypatch)
    setup = Setup(splits, "shapmix", every=3)
    setup.mixer.warmup_steps = setup.mixer.replace_steps = 0
    observed: list[int] = []
    observe = setup.mixer.observe
    monkeypatch.setattr(setup.mixer, "observe", lambda *given, **more: observed.append(given[3]) or observe(*given, **more))
    step, weight = setup.step(capture=True), next(setup.network.parameters())
    replayed, gradients = [], {True: set(), False: set()}
    for number in range(3 * (WARM_UP + 3)):
        pretended.waits.clear()
        step(splits.train[:BATCH], number)
        if "replay" in pretended.waits:
            replayed.append(number)
            gradients[number % 3 == 0].add(weight.grad.data_ptr())
    gc.collect()
    assert len(pretended.live) == 2
    measuring, others = ([number for number in replayed if (number % 3 == 0) == kind] for kind in (True, False))
    assert measuring == [3 * WARM_UP, 3 * WARM_UP + 3, 3 * WARM_UP + 6]
    assert others == [number for number in range(3 * WARM_UP + 9) if number % 3][WARM_UP:]
    assert sum(number % 3 == 0 for number in observed) == WARM_UP + 1  # the rest are replays
    assert len(gradients[True]) == len(gradients[False]) == 1
    assert gradients[True] != gradients[False]
    setup.optimizer.load_state_dict(setup.optimizer.state_dict())
    pretended.waits.clear()
    step(splits.train[:BATCH], 3 * (WARM_UP + 3))
    gc.collect()
    assert len(pretended.live) == 0
    assert "replay" not in pretended.waits


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def assert_close_states(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(("clips_given", "every"), [(False, 1), (True, 1), (False, 2)])
def test_the_graph_is_the_plain_path(
    splits: Splits, optimizer: str, clips_given: bool, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through two phases of the schedule and a change of the learning rate, which the graph must follow.

    In whole float32, at rates and with an eps where rounding stays rounding: at a rate of 0.05 a last bit grows past these
    tolerances in seven steps, and AdamW's usual eps makes whole updates of a gradient that is zero but for rounding, such as that
    of a bias before batch normalisation.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    setups = {capture: Setup(splits, "shapmix", "cuda", augment=EVERYTHING, every=every) for capture in (False, True)}
    steps = {}
    for capture, setup in setups.items():
        if optimizer == "AdamW":
            setup.optimizer = torch.optim.AdamW(setup.network.parameters(), lr=1e-3, eps=1e-3, fused=True)
        else:
            setup.optimizer.param_groups[0]["lr"] = 2e-3
        steps[capture] = setup.step(capture=capture, clips_given=clips_given)
    batches = list(epoch_batches(epoch_order(splits.train[: BATCH * STEPS], 0, 0), BATCH)) * 3
    for number, chosen in enumerate(batches):
        if number == len(batches) - 3:
            for setup in setups.values():
                setup.optimizer.param_groups[0]["lr"] *= 0.1
        clips = setups[True].sampler.training(chosen, number) if clips_given else None
        results: dict[bool, StepResult] = {}
        for capture, one in steps.items():
            found = one(chosen, number, clips)
            results[capture] = StepResult(*(value.clone() for value in found))
        for left, right in zip(results[True], results[False], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    assert len(steps[True]._captured) == every  # with and without a measurement
    assert_close_states(setups[True].state(), setups[False].state())
    assert isinstance(setups[True].optimizer.param_groups[0]["lr"], float)


@pytest.mark.gpu
@needs_gpu
def test_a_graph_leaves_everything_alone_where_the_loss_is_not_finite(splits: Splits) -> None:
    setup = Setup(splits, "shapmix", "cuda")
    step = setup.step(clips_given=True)
    batches = list(epoch_batches(epoch_order(splits.train[: BATCH * STEPS], 0, 0), BATCH)) * 3
    for number, chosen in enumerate(batches):
        step(chosen, number, setup.sampler.training(chosen, number))
    assert step._captured
    before = {name: value.clone() for name, value in setup.state().items()}
    result = step(batches[0], len(batches), torch.full_like(setup.sampler.training(batches[0], 0), torch.nan))
    assert not (result.clean + result.mixed).isfinite()
    assert all(torch.equal(value, before[name]) for name, value in setup.state().items())
    assert all(value["momentum_buffer"].isfinite().all() for value in setup.optimizer.state.values())


def of_doubles(splits: Splits, network_norms: str) -> Setup:
    """A setup in float64, where the order of a sum does not matter."""
    torch.set_default_dtype(torch.float64)
    splits = replace(splits, store=replace(splits.store, frames=splits.store.frames.double()))
    setup = Setup(splits, "shapmix", estimator="official")
    setup.network.double()
    if network_norms == "synced":
        sync_norms(setup.network)
    return setup


def one_of_two(process: int, store: str, out: str, network_norms: str) -> None:
    """Some steps of a process, with nothing read on the host; process 1 writes its state and the losses."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=process, world_size=2)
    splits = make_synthetic(num_classes=4, n_max=16, imbalance=2, val_per_class=1, test_per_class=1)
    setup = of_doubles(splits, network_norms)
    if process == 1:
        nn.init.zeros_(setup.network.fc.weight)  # the step begins with the weights of process 0
    mixers.draw_plan = lambda *given, backend, **options: reference.draw_plan(*given, **options)
    step, losses = setup.step(), []
    for number, chosen in enumerate(epoch_batches(epoch_order(splits.train[: BATCH * STEPS], 1, 0), BATCH)):
        with NoHostReads() if number else nullcontext():  # tables of constants are made once
            result = step(chosen, number)
        losses.append((float(result.clean), float(result.mixed), int(result.right)))
    states = [None, None]
    distributed.all_gather_object(states, setup.state())
    if process == 1:
        torch.save((losses, states), out)
    distributed.destroy_process_group()


@pytest.mark.parametrize("network_norms", ["synced", "of process 0"])
def test_two_processes_share_a_step(splits: Splits, network_norms: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With synchronised norms, the step of one process; without, all processes have the same state."""
    arguments = (str(tmp_path / "store"), str(tmp_path / "out.pt"), network_norms)
    multiprocessing.spawn(one_of_two, arguments, nprocs=2)
    losses, (first, second) = torch.load(tmp_path / "out.pt")
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    if network_norms != "synced":
        return
    try:
        setup = of_doubles(splits, "own")
        step = setup.step()
        for number, chosen in enumerate(epoch_batches(epoch_order(splits.train[: BATCH * STEPS], 1, 0), BATCH)):
            result = step(chosen, number)
            assert losses[number] == (pytest.approx(float(result.clean)), pytest.approx(float(result.mixed)), int(result.right))
        for name, tensor in setup.state().items():
            torch.testing.assert_close(second[name], tensor, rtol=1e-7, atol=1e-9, msg=name)
    finally:
        torch.set_default_dtype(torch.float32)
