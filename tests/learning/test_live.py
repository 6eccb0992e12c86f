"""Images read as they are drawn: augmented, streamed, or not to be kept."""

from __future__ import annotations

import json
import logging
import random
import threading
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.batches import Batches, GrowingBatches
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.streams import ImageStream, StreamPart
from p2pft_flower.learning.draws import seeded
from p2pft_flower.learning.live import LiveFeatures, StreamFeatures, augmentation
from p2pft_flower.learning.model.embedded import create_glyph_vit
from p2pft_flower.learning.model.models import preprocessing
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.store.features import TrunkStore
from p2pft_flower.learning.workload import Workload

from .conftest import COLOURS, small_vit

POLICIES = ["basic", "rand-m9-mstd0.5-inc1", "rand-m5-n3-tweights", "augmix-m3-w2", "original-mstd0.5", "3a"]


@pytest.fixture
def model():
    vit = small_vit()
    vit.pretrained_cfg = {
        "input_size": (3, 8, 8),
        "interpolation": "bicubic",
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.25, 0.3),
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    return vit


def paint(folder, name, shade=None):
    folder.mkdir(parents=True, exist_ok=True)
    shade = COLOURS.get(folder.name, (9, 9, 9)) if shade is None else shade
    Image.new("RGB", (10, 10), shade).save(folder / name)


def whole(split):
    return np.arange(len(split))


def draws():
    return random.random(), np.random.random(), torch.rand(1).item()


# --- draws ------------------------------------------------------------------------------------------------


def test_seeded_draws_follow_their_key_and_nothing_else():
    with seeded(1, 2, 3):
        first = draws()
    with seeded(1, 2, 4):
        assert not set(first) & set(draws())
    draws()
    with seeded(1, 2, 3):
        assert draws() == first


def test_seeding_leaves_the_global_generators_as_they_were_also_after_an_error():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        expected = draws()
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        with seeded(5):
            draws()
        with pytest.raises(ZeroDivisionError), seeded(5):
            draws()[0] / 0
        assert draws() == expected
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def test_threads_that_seed_do_not_disturb_each_other():
    with seeded(7):
        expected = [draws() for _ in range(50)]
    found = {}

    def draw(number):
        with seeded(7):
            found[number] = [draws() for _ in range(50)]

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i] == expected for i in range(4))


# --- augmentation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_augmented_images_have_the_models_shape_and_change_from_draw_to_draw(policy, model, folder):
    transform = augmentation(model, policy)
    image = load_dataset(f"folder:{folder}").train.read(0)
    for make in (transform, augmentation(create_glyph_vit(num_classes=3, pretrained=False), policy)):
        made = []
        for draw in range(12):
            with seeded(draw):
                made.append(make(image))
        assert made[0].shape[1:] == (8, 8)
        assert made[0].dtype == torch.float32
        assert len({tuple(m.ravel().tolist()) for m in made}) > 6


def test_augmentation_keeps_the_models_mean_and_deviation(model):
    transform = augmentation(model, "basic")
    grey = Image.new("RGB", (20, 20), (128, 128, 128))
    expected = preprocessing(model)(grey)
    with seeded(0):
        torch.testing.assert_close(transform(grey), expected)  # crops and flips of one colour change nothing


@pytest.mark.parametrize(
    "wrong", ["nonsense", "", "rand-m9-x3", "rand-m9-mstd", "random-m9", "augmix-q3", "rand-mhigh", "Basic"]
)
def test_an_augmentation_that_timm_has_not_is_refused_with_the_choices(wrong, model):
    with pytest.raises(
        ConfigError, match=rf"^augment = '{wrong}': choose none, basic, or .*rand-m9-mstd0\.5"
    ):
        augmentation(model, wrong)


def live(model, split, policy="basic", *, seed=0, peer=0, trunk=lambda images: images):
    transform = augmentation(model, policy) if policy else preprocessing(model)
    return LiveFeatures(split, whole(split), transform, trunk, seed=seed, peer=peer, augmented=bool(policy))


@pytest.mark.parametrize("policy", ["basic", "rand-m9-mstd0.5-inc1"])
def test_what_is_drawn_follows_from_seed_peer_and_the_mini_batchs_number_alone(policy, model, folder):
    split = load_dataset(f"folder:{folder}").train
    positions = np.array([3, 0, 7])
    (first,), labels = live(model, split, policy).read(positions, 4)
    assert labels.tolist() == split.labels[positions].tolist()
    other = live(model, split, policy)
    other.read(np.array([1, 2]), 9)
    draws()
    found = []
    thread = threading.Thread(target=lambda: found.append(other.read(positions, 4)[0][0]))
    thread.start()
    thread.join()
    assert torch.equal(found[0], first)
    for changed in (
        other.read(positions, 5),
        live(model, split, policy, seed=1).read(positions, 4),
        live(model, split, policy, peer=1).read(positions, 4),
    ):
        assert not torch.equal(changed[0][0], first)


def test_augmented_images_are_for_training_only(model, folder):
    with pytest.raises(ValueError, match="need the mini-batch's number"):
        live(model, load_dataset(f"folder:{folder}").train).read(np.array([0]), None)


# --- live features ----------------------------------------------------------------------------------------


def test_live_features_are_what_would_have_been_kept(model, folder):
    split = load_dataset(f"folder:{folder}").train
    trunk, *_ = split_model(model, "last-block")
    positions = np.array([8, 2, 5, 0])
    store = TrunkStore(trunk, preprocessing(model), {"test": "live"}, halves=False)
    kept = store.features(split, positions, "test")
    features = LiveFeatures(split, positions, preprocessing(model), trunk, seed=0, peer=0, augmented=False)
    assert len(features) == 4
    assert torch.equal(features.labels, kept.labels)
    wanted = np.array([3, 1])
    for draw in (None, 0, 1):
        inputs, labels = features.read(wanted, draw)
        expected, truth = kept.read(wanted)
        torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(labels, truth)
        assert not any(t.requires_grad for t in inputs)


def test_a_tail_can_be_trained_on_live_features_and_a_trunk_may_return_several_tensors(model, folder):
    split = load_dataset(f"folder:{folder}").train
    weight = torch.ones(1, requires_grad=True)
    pair = live(model, split, "", trunk=lambda images: (images, images.mean(dim=(1, 2, 3))))
    (images, means), _ = pair.read(np.array([0, 1]), None)
    assert (images.shape, means.shape) == ((2, 3, 8, 8), (2,))
    (weight * means).sum().backward()
    torch.testing.assert_close(weight.grad, means.sum().reshape(1))


def test_a_corrupt_image_is_named_when_it_is_drawn(model, folder):
    split = load_dataset(f"folder:{folder}").train
    (folder / "train" / "blue" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"train/blue/0\.png: not a readable image"):
        live(model, split).read(np.array([0]), 0)


# --- streams ----------------------------------------------------------------------------------------------


def stream_of(folder, labels=(0, 1, 2)):
    return ImageStream([StreamPart(folder / "train", np.array(labels))], ("blue", "green", "red"), "peer 0's")


def drawn(batches, first, last):
    return [batches.batch(t).tolist() for t in range(first, last)]


@pytest.mark.parametrize("size", [1, 2, 5, 12, 40])
def test_a_folder_that_does_not_grow_is_drawn_in_the_usual_order(size, folder):
    split = load_dataset(f"folder:{folder}").train
    stream = stream_of(folder)
    np.testing.assert_array_equal(stream.labels, split.labels)
    usual = Batches(12, size, seed=3, peer=1)
    growing = GrowingBatches(stream.refresh, stream, size, seed=3, peer=1)
    for t in [*range(30), 7, 8, 40]:
        np.testing.assert_array_equal(growing.batch(t), usual.batch(t))


def test_new_images_join_at_the_start_of_the_next_pass_and_not_before(folder):
    stream = stream_of(folder, [1])  # four green images
    batches = GrowingBatches(stream.refresh, stream, 2, seed=0, peer=0)
    first = drawn(batches, 0, 1)
    paint(folder / "train" / "green", "new.png")
    paint(folder / "train" / "red", "not-mine.png")
    first += drawn(batches, 1, 2)
    assert sorted(chain(*first)) == [0, 1, 2, 3]
    second = [*chain(*drawn(batches, 2, 4)), *drawn(batches, 4, 5)[0][:1]]
    assert sorted(second) == [0, 1, 2, 3, 4]
    assert stream.labels.tolist() == [1] * 5
    assert stream.picture(4).getpixel((0, 0)) == COLOURS["green"]


def test_a_batch_may_span_two_passes_of_different_length(folder):
    stream = stream_of(folder, [0])
    batches = GrowingBatches(stream.refresh, stream, 3, seed=0, peer=0)
    batches.batch(0)
    paint(folder / "train" / "blue", "new.png")
    spanning, next_ = batches.batch(1), batches.batch(2)
    assert len(spanning) == len(next_) == 3
    assert sorted([*spanning[1:], *next_]) == [0, 1, 2, 3, 4]


def test_a_peer_that_starts_anew_draws_what_another_process_would(folder):
    paint(folder / "train" / "red", "late.png")
    mine = stream_of(folder)
    here = GrowingBatches(mine.refresh, mine, 4, seed=1, peer=2)
    old = stream_of(folder)
    paint(folder / "train" / "blue", "zz.png")
    there = stream_of(folder)
    resumed = GrowingBatches(old.refresh, old, 4, seed=1, peer=2).batch(9)
    fresh = GrowingBatches(there.refresh, there, 4, seed=1, peer=2).batch(9)
    assert [old._files[p] for p in resumed] == [there._files[p] for p in fresh]  # positions may differ
    np.testing.assert_array_equal(here.batch(9), here.batch(9))


def files_of(stream, batches):
    return [[stream._files[p] for p in positions] for positions in batches]


def resumed_at(position, folder, size):
    """Return a stream in another process, so to speak, and batches that go on at ``position``."""
    stream = stream_of(folder)
    batches = GrowingBatches(stream.refresh, stream, size, seed=3, peer=1)
    batches.go_to(json.loads(json.dumps(position)))
    return stream, batches


@pytest.mark.parametrize("interrupted_at", range(1, 9))
def test_a_resumed_stream_goes_on_with_the_same_files_though_others_came_meanwhile(interrupted_at, folder):
    stream = stream_of(folder)
    whole = GrowingBatches(stream.refresh, stream, 5, seed=3, peer=1)
    first = drawn(whole, 0, interrupted_at)
    told = whole.position()
    paint(folder / "train" / "blue", "0-comes-first.png")  # every position of a new listing is another
    there, resumed = resumed_at(told(), folder, 5)
    rest = drawn(whole, interrupted_at, 12)
    assert files_of(there, drawn(resumed, interrupted_at, 12)) == files_of(stream, rest)
    assert told()["next"] == interrupted_at  # whatever was drawn since
    assert len(first) == interrupted_at


def test_an_image_that_is_gone_when_a_stream_is_resumed_is_told_of_and_left_out(folder, caplog):
    stream = stream_of(folder)
    whole = GrowingBatches(stream.refresh, stream, 5, seed=3, peer=1)
    whole.batch(0)
    gone, frame = stream._files[whole._order[whole._offset]]
    told = whole.position()()
    gone.unlink()
    with caplog.at_level(logging.WARNING, "p2pft_flower"):
        there, resumed = resumed_at(told, folder, 5)
    assert "1 images that were listed before the run was interrupted are gone" in caplog.text
    assert gone.name in caplog.text
    assert files_of(there, drawn(resumed, 1, 2)) == files_of(stream, drawn(whole, 1, 2))
    with pytest.raises(DataError, match=gone.name):
        there.picture(there._positions[gone, frame])


def test_a_stream_is_not_resumed_on_other_classes(folder):
    stream = stream_of(folder)
    whole = GrowingBatches(stream.refresh, stream, 5, seed=3, peer=1)
    whole.batch(0)
    told = whole.position()()
    told["left"][0] = "0/violet/3.png"
    with pytest.raises(DataError, match=r"'0/violet/3.png' was listed .* no class here \(blue, "):
        resumed_at(told, folder, 5)


def test_a_file_still_being_written_waits_for_the_next_listing(folder, caplog):
    stream = stream_of(folder, [2])
    source = folder / "train" / "red" / "0.png"
    late = folder / "train" / "red" / "late.png"
    late.write_bytes(source.read_bytes()[:100])
    with caplog.at_level(logging.DEBUG, logger="p2pft_flower"):
        assert stream.refresh().tolist() == [0, 1, 2, 3]
        assert stream.refresh().tolist() == [0, 1, 2, 3]
        told = [
            (r.levelname, "late.png" in r.getMessage()) for r in caplog.records if "readable" in r.message
        ]
        assert told == [("DEBUG", True)]
        stream.refresh()
        stream.refresh()
    warned = [r for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 1
    assert "not readable at 3 listings, left out until it is:" in warned[0].getMessage()
    late.write_bytes(source.read_bytes())
    assert stream.refresh().tolist() == [0, 1, 2, 3, 4]


def test_images_that_vanish_are_left_out_from_the_next_listing_on_with_a_warning(folder, model, caplog):
    stream = stream_of(folder, [2])
    features = StreamFeatures(stream, preprocessing(model), lambda x: x, seed=0, peer=0, augmented=False)
    (folder / "train" / "red" / "0.png").unlink()
    (values,), labels = features.read(np.array([1, 0, 2]), 0)
    assert (len(values), labels.tolist()) == (2, [2, 2])
    assert "left out of a mini-batch" in caplog.text
    with pytest.raises(DataError, match="none of the 1 images of a mini-batch exists any more"):
        features.read(np.array([0]), 0)
    caplog.clear()
    assert stream.refresh().tolist() == [1, 2, 3]
    assert "1 images are gone" in caplog.text
    assert "red/0.png" in caplog.text
    for file in (folder / "train" / "red").iterdir():
        file.unlink()
    with pytest.raises(
        DataError, match=r"peer 0's stream: no readable image of its classes in .*train; add some"
    ):
        stream.refresh()


def test_folders_of_new_classes_are_passed_over_and_told_once(folder, caplog):
    stream = stream_of(folder)
    paint(folder / "train" / "pink", "0.png")
    assert len(stream.refresh()) == 12
    assert len(stream.refresh()) == 12
    assert caplog.text.count("train/pink") == 1
    assert "the model's head has 3 outputs" in caplog.text


def test_a_streams_features_grow_and_are_augmented_like_others(folder, model):
    stream = stream_of(folder, [1])
    transform = augmentation(model, "basic")
    features = StreamFeatures(stream, transform, lambda x: x, seed=0, peer=0, augmented=True)
    kept = live(model, load_dataset(f"folder:{folder}").train)
    (ours,), _ = features.read(np.array([0, 2]), 3)
    (theirs,), _ = kept.read(np.array([4, 6]), 3)
    assert torch.equal(ours, theirs)
    assert len(features) == 4
    paint(folder / "train" / "green", "new.png")
    stream.refresh()
    assert len(features) == 5
    assert features.labels.tolist() == [1] * 5


def workload(dataset, n=3, **settings):
    pooled = settings.pop("pooled", "")
    return Workload(
        LearningConfig(dataset=dataset, stream=True, batch_size=2, **settings), n=n, pooled=pooled
    )


def test_a_workload_gives_a_new_image_to_the_peer_that_holds_its_class(folder):
    problem = workload(f"folder:{folder}", n=2, partition="classes:2,0-1")
    streams = [problem.holdings.stream(p) for p in range(2)]
    assert problem.holdings.stream(1) is streams[1]
    paint(folder / "train" / "red", "new.png")
    assert [len(s.refresh()) for s in streams] == [5, 8]
    assert set(streams[0].labels.tolist()) == {2}
    usual = Workload(LearningConfig(dataset=f"folder:{folder}", batch_size=2), n=3)
    for peer in range(3):
        growing = workload(f"folder:{folder}").batches(peer)
        np.testing.assert_array_equal(growing.batch(1), usual.batches(peer).batch(1))


def test_a_workload_gives_a_new_image_in_a_peers_own_folder_to_that_peer(tmp_path):
    for peer in range(2):
        for part in ("train", "test"):
            for name in COLOURS:
                paint(tmp_path / f"site-{peer}" / part / name, "0.png")
    problem = workload(f"folder:{tmp_path}/site-{{peer}}", n=2)
    paint(tmp_path / "site-1" / "train" / "green", "1.png")
    assert [len(problem.holdings.stream(p).refresh()) for p in range(2)] == [3, 4]


def test_the_pooled_stream_draws_the_very_images_of_the_peers(folder):
    alone = workload(f"folder:{folder}")
    pooled = workload(f"folder:{folder}", pooled="uniform")
    both = pooled.mini_batches(0)
    apart = [alone.mini_batches(p) for p in range(3)]
    for t in range(5):
        if t == 2:
            paint(folder / "train" / "green", "new.png")
        drawn, parts = both.read(t), [batches.read(t) for batches in apart]
        assert drawn.sizes == (2, 2, 2)
        assert torch.equal(drawn.labels, torch.cat([part.labels for part in parts]))
        for field, own in zip(drawn.inputs, zip(*(part.inputs for part in parts), strict=True), strict=True):
            torch.testing.assert_close(field, torch.cat(own))
    union = workload(f"folder:{folder}", pooled="examples").mini_batches(0)
    assert union.read(0).sizes == (6,)


def test_a_stream_is_refused_where_no_rule_says_whose_a_new_image_is(folder):
    with pytest.raises(
        ConfigError, match=r"with 5 peers and 3 classes, partition = auto means dirichlet:0\.5"
    ):
        _ = workload(f"folder:{folder}", n=5).holdings.partition_spec
    with pytest.raises(ConfigError, match=r"stream = true with partition = 'iid'"):
        workload(f"folder:{folder}", partition="iid")


def test_images_of_a_stream_are_not_refused_for_being_unreadable_but_test_images_are(folder):
    (folder / "train" / "blue" / "0.png").write_bytes(b"being written")
    problem = workload(f"folder:{folder}")
    problem.holdings.check_images([0, 1, 2])
    assert len(problem.holdings.stream(0).refresh()) == 3
    (folder / "test" / "blue" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"test/blue/0\.png: not a readable image"):
        problem.holdings.check_images([0])
