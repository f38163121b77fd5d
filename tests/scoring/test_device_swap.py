import accelerate
import pytest
import torch
from torch import nn

from calibri.errors import RunError
from calibri.pipelines.placement import movable_modules
from calibri.rewards.jpeg import JpegCompressibility
from calibri.rewards.reward import ModelReward, RewardInfo
from calibri.scoring.device_swap import DeviceSwap, alternate, share_device
from tests.needs import group_offloading

CARD, HOST = torch.device("cuda", 0), torch.device("cpu")


class World:
    """A device that holds so much, and things that say where they were moved."""

    def __init__(self, room=10):
        self.room, self.log, self.places = room, [], {}

    def thing(self, name, size=1, place=HOST):
        self.places[name] = (place, size)
        return Thing(self, name)

    def move(self, name, device):
        _, size = self.places[name]
        self.places[name] = (device, size)
        self.log.append((name, device.type))
        if sum(s for place, s in self.places.values() if place == CARD) > self.room:
            self.places[name] = (HOST, size)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def on_card(self):
        return {name for name, (place, _) in self.places.items() if place == CARD}


class Thing:
    def __init__(self, world, name):
        self.world, self.name = world, name

    def to(self, device):
        self.world.move(self.name, device)


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.fixture
def world():
    return World(room=3)


@pytest.fixture
def swap(world):
    pipeline = [world.thing("transformer", 2, CARD), world.thing("vae", 1, CARD)]
    return DeviceSwap(CARD, {"pipeline": pipeline, "rewards": [world.thing("hpsv3", 3)]})


def test_one_group_at_a_time_lives_on_the_device(world, swap):
    swap.use("rewards")
    assert world.on_card() == {"hpsv3"}
    swap.use("pipeline")
    assert world.on_card() == {"transformer", "vae"}
    assert swap.here == "pipeline"


def test_the_others_leave_before_a_group_comes(world, swap):
    swap.use("rewards")  # World raises where both are on the card, even for a moment
    assert [name for name, _ in world.log] == ["transformer", "vae", "hpsv3"]


def test_moves_are_counted_and_needless_ones_left_out(world, swap):
    for _ in range(3):
        swap.use("pipeline")
    assert (swap.moves, len(world.log)) == (1, 3)
    swap.use("rewards")
    swap.use("pipeline")
    assert swap.moves == 3


def test_an_empty_group_sends_the_others_away(world):
    swap = DeviceSwap(CARD, {"pipeline": [], "rewards": [world.thing("hpsv3", 3, CARD)]})
    swap.use("pipeline")
    assert world.on_card() == set()
    assert swap.here == "pipeline"


def test_what_does_not_fit_alone_is_said_and_moved_again_next_time(world, swap):
    world.room = 1
    with pytest.raises(RunError, match=r"'rewards' do not fit on 'cuda:0'.*smaller dtype"):
        swap.use("rewards")
    assert (swap.here, swap.moves) == (None, 0)
    world.room = 3
    swap.use("pipeline")
    assert world.on_card() == {"transformer", "vae"}


def test_the_device_is_emptied_only_where_there_is_an_allocator(world, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(sorted(world.on_card())))
    DeviceSwap("cpu", {"a": [world.thing("x")], "b": []}).use("a")
    assert emptied == []
    swap = DeviceSwap(CARD, {"a": [world.thing("y", 1, CARD)], "b": [world.thing("z")]})
    swap.use("b")
    assert emptied == [[]]  # after y left, before z came


def steps(swap, log):
    def sample(item):
        log.append(("sample", item, swap.here))
        return -item

    def score(item, made):
        log.append(("score", item, swap.here))
        return (item, made)

    return ("pipeline", sample), ("rewards", score)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("sizes", [[], [1], [1, 1, 1, 1, 1], [3, 1, 1, 2], [5, 1, 4]])
def test_results_come_in_order_and_parts_are_as_large_as_allowed(swap, sizes, most):
    log = []
    items = list(range(len(sizes)))
    sample, score = steps(swap, log)
    found = list(alternate(swap, items, sample, score, size=sizes.__getitem__, most=most))
    assert found == [(item, -item) for item in items]
    assert all(here == ("pipeline" if step == "sample" else "rewards") for step, _, here in log)
    parts, previous = [], None
    for step, item, _ in log:
        if step == "sample":
            parts = [*parts, []] if previous != "sample" else parts
            parts[-1].append(item)
        previous = step
    assert swap.moves == 2 * len(parts)
    weights = [sum(sizes[item] for item in part) for part in parts]
    for part, weight in zip(parts, weights, strict=True):
        assert weight <= most or len(part) == 1
    for weight, following in zip(weights, parts[1:], strict=False):
        assert weight + sizes[following[0]] > most  # it could not have held one more


def test_a_result_is_given_before_the_next_is_scored(swap):
    log = []
    results = alternate(swap, [1, 2, 3], *steps(swap, log))
    next(results)
    assert [entry[:2] for entry in log] == [
        ("sample", 1),
        ("sample", 2),
        ("sample", 3),
        ("score", 1),
    ]
    swap.use("pipeline")  # an image failed and was sampled again
    next(results)
    assert log[-1] == ("score", 2, "rewards")


class Recorded(nn.Linear):
    """A network that only says where it was asked to go."""

    def __init__(self):
        super().__init__(2, 2)
        self.asked = []

    def to(self, *args, **kwargs):
        self.asked.append(args[0])
        return self


class Reward(ModelReward):
    info = RewardInfo("recorded", "tiny")

    def load(self):
        return Recorded()

    def score_batch(self, images, prompts):
        return self.model.weight.sum().expand(len(prompts))


def test_a_reward_is_moved_and_one_that_is_not_loaded_loads_where_it_is_used():
    reward = Reward(device=CARD)
    swap = DeviceSwap(CARD, {"pipeline": [], "rewards": [reward]})
    swap.use("pipeline")
    assert reward.device == HOST
    swap.use("rewards")
    network = reward.model
    assert network.asked == [CARD]
    swap.use("pipeline")
    assert network.asked == [CARD, HOST]


def test_weights_moved_inside_inference_mode_can_still_be_trained(swap):
    network = nn.Linear(2, 2)
    turns = DeviceSwap("cpu", {"a": [network], "b": []}, away="meta")
    with torch.inference_mode():
        turns.use("b")
    assert not any(weight.is_inference() for weight in network.parameters())


class Pipe:
    hf_device_map = None

    def __init__(self):
        blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.components = {"transformer": blocks, "vae": nn.Linear(2, 2), "scheduler": object()}


def bind_by_model_offload(pipe):
    accelerate.cpu_offload_with_hook(pipe.components["vae"], "cpu")


def bind_by_sequential_offload(pipe):
    accelerate.cpu_offload(pipe.components["transformer"], "cpu")


def bind_by_group_offload(pipe):
    device = torch.device("cpu")
    group_offloading()(pipe.components["transformer"], device, offload_type="leaf_level")


def bind_by_device_map(pipe):
    pipe.hf_device_map = {"transformer": 0}


def bind_by_eight_bits(pipe):
    pipe.components["transformer"].is_loaded_in_8bit = True


def bind_a_part_by_device_map(pipe):
    pipe.components["transformer"].hf_device_map = {"0": 0, "1": "cpu"}


BINDINGS = (
    *(bind_by_model_offload, bind_by_sequential_offload, bind_by_group_offload),
    *(bind_by_device_map, bind_by_eight_bits, bind_a_part_by_device_map),
)


@pytest.mark.parametrize("bind", BINDINGS, ids=lambda f: f.__name__)
def test_a_pipeline_that_something_else_moves_is_left_alone(bind):
    pipe = Pipe()
    assert movable_modules(pipe) == (pipe.components["transformer"], pipe.components["vae"])
    bind(pipe)
    assert movable_modules(pipe) == ()


def test_hooks_of_our_own_do_not_bind_a_pipeline():
    pipe = Pipe()
    pipe.components["transformer"][0].register_forward_hook(lambda module, args, output: output)
    assert len(movable_modules(pipe)) == 2


def test_only_rewards_on_the_pipelines_device_take_turns_with_it():
    near, default, far = (Reward(device=name) for name in ("cuda:0", "cuda", "cuda:1"))
    pipe = Pipe()
    for name in ("transformer", "vae"):
        pipe.components[name] = Recorded()
    swap = share_device(pipe, [near, default, far, JpegCompressibility()], CARD)
    swap.use("rewards")
    assert [part.asked for part in pipe.components.values() if isinstance(part, Recorded)] == [
        [HOST],
        [HOST],
    ]
    swap.use("pipeline")
    assert [r.device for r in (near, default, far)] == [HOST, HOST, torch.device("cuda:1")]


def test_other_errors_of_a_move_stay_what_they_are(world, swap):
    def broken(name, device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    world.move = broken
    with pytest.raises(RuntimeError, match="illegal"):
        swap.use("rewards")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_sampled_before_a_stop_is_scored(swap, error):
    def sample(item):
        if item == 3:
            raise error
        return item * 10

    results = alternate(swap, range(5), ("pipeline", sample), ("rewards", lambda i, m: (i, m)))
    arrived = []
    with pytest.raises(error):
        arrived.extend(results)
    assert arrived == [(0, 0), (1, 10), (2, 20)]
