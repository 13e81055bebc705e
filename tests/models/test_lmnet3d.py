"""3D-LMNet: shapes, losses term by term, sampling, training, the slow twin, refusals."""

import copy
import math

import pytest
import torch

import paperops
from paperops.models.lmnet3d import (
    ImageEncoder,
    LatentDistribution,
    LatentMatching,
    PointAutoEncoder,
    ProbabilisticLatentMatching,
    diversity_loss,
    diversity_target,
    latent_matching_loss,
)


def small_autoencoder(**options):
    return PointAutoEncoder(24, 8, encoder_widths=(8, 8), decoder_widths=(16,), **options)


def small_encoder(**options):
    options = {"in_channels": 1, "image_size": 8, "widths": (4, 8), "depths": (1, 2), "last_kernel": 3} | options
    return ImageEncoder(8, **options)


def small_model(model, /, **options):
    return model(small_autoencoder(), small_encoder(), **options)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def fixed_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def data():
    generator = seeded(1)
    clouds = torch.rand(6, 30, 3, generator=generator) - 0.5
    return torch.rand(6, 1, 8, 8, generator=generator), clouds, torch.linspace(0, 360, 6)


# --- the networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 24, 57])
def test_autoencoder_shapes(count):
    model = small_autoencoder()
    points = torch.rand(3, count, 3)
    assert model.encode(points).shape == (3, 8)
    assert model(points).shape == (3, 24, 3)
    assert model.decode(torch.rand(3, 8)).shape == (3, 24, 3)


def test_published_sizes():
    autoencoder = PointAutoEncoder()
    encoder = ImageEncoder()
    assert [m.out_features for m in autoencoder.encoder if isinstance(m, torch.nn.Linear)] == [64, 128, 128, 256, 512]
    assert [m.out_features for m in autoencoder.decoder if isinstance(m, torch.nn.Linear)] == [256, 256, 2048 * 3]
    assert [m.stride[0] for m in encoder.features if isinstance(m, torch.nn.Conv2d)].count(2) == 5
    assert encoder.num_features == 512 * 4 * 4
    assert encoder.head.out_features == 512


def test_latent_does_not_depend_on_the_order_of_points():
    model = small_autoencoder().eval()
    points = torch.rand(2, 30, 3)
    shuffled = points[:, torch.randperm(30)]
    torch.testing.assert_close(model.encode(points), model.encode(shuffled))


def test_latent_term_by_term():
    model = small_autoencoder().double()
    for _ in range(3):
        model.encode(torch.randn(4, 30, 3, dtype=torch.float64))  # moves the running statistics off their start
    model.eval()
    points = torch.randn(2, 5, 3, dtype=torch.float64)
    expected = torch.full((2, 8), -torch.inf, dtype=torch.float64)
    for b in range(2):
        for n in range(5):
            value = points[b, n]
            for linear, norm in zip(model.encoder[::3], model.encoder[1::3], strict=True):
                value = linear.weight @ value + linear.bias
                value = (value - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
                value = value.clamp(min=0)
            expected[b] = torch.maximum(expected[b], value)
    torch.testing.assert_close(model.encode(points), expected)


@pytest.mark.parametrize("size", [1, 8, 9, (7, 12)])
def test_image_encoder_takes_any_size(size):
    encoder = small_encoder(image_size=size, in_channels=2)
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.rand(3, 2, height, width)
    assert encoder(images).shape == (3, 8)
    assert encoder.extract(images).shape == (3, encoder.num_features)


# --- the losses ----------------------------------------------------------------------------------------------------


def test_reconstruction_loss_term_by_term(data):
    _, points, _ = data
    model = small_autoencoder().double().eval()
    points, target = points.double(), points[:, :11].double()
    for against in (None, target):
        for squared in (False, True):
            expected = 0.0
            true = points if against is None else against
            for cloud, other in zip(model(points), true, strict=True):
                distances = (cloud[:, None] - other[None]).square().sum(-1)
                distances = distances if squared else distances.sqrt()
                expected += (distances.min(1).values.mean() + distances.min(0).values.mean()) / len(points)
            torch.testing.assert_close(model.loss(points, against, squared=squared), expected)


def test_latent_matching_loss_term_by_term():
    predicted = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    target = torch.tensor([[0.0, 1.0], [0.5, 5.0]])
    torch.testing.assert_close(latent_matching_loss(predicted, target, "l1"), torch.tensor((1 + 3 + 0 + 2) / 4.0))
    torch.testing.assert_close(latent_matching_loss(predicted, target, "l2"), torch.tensor((1 + 9 + 0 + 4) / 4.0))


def test_diversity_loss_by_hand():
    deviations = torch.tensor([[0.1, 0.3], [0.0, 0.2], [0.4, 0.4]], dtype=torch.float64)
    angles = torch.tensor([180.0, 160.0, 0.0], dtype=torch.float64)
    asked = [0.2, 0.2 * math.exp(-((160 - 180) ** 2) / 20**2), 0.2 * math.exp(-((0 - 180) ** 2) / 20**2)]
    expected = ((0.2 - asked[0]) ** 2 + (0.1 - asked[1]) ** 2 + (0.4 - asked[2]) ** 2) / 3
    assert diversity_loss(deviations, angles).item() == pytest.approx(expected, rel=1e-12)


def test_diversity_angles_wrap_around():
    target = diversity_target(torch.tensor([190.0, 190.0 - 360, 170.0, 190.0 + 720]))
    torch.testing.assert_close(target, target[:1].expand(4))
    target = diversity_target(torch.tensor([350.0, 10.0, -10.0]), centre=0.0, amplitude=1.0)
    torch.testing.assert_close(target, torch.full((3,), math.exp(-0.25)))
    inside = torch.linspace(0, 359, 50)  # within the paper's own range nothing wraps
    torch.testing.assert_close(diversity_target(inside), 0.2 * torch.exp(-((inside - 180) ** 2) / 400))


def test_probabilistic_loss_term_by_term(data):
    images, points, angles = data
    model = small_model(ProbabilisticLatentMatching, weight=3.0, amplitude=0.7, centre=100.0, width=40.0)
    loss = model.loss(images, points, angles, seeded(3))

    features = model.encoder.features(images)
    mean = features @ model.encoder.head.weight.T + model.encoder.head.bias
    deviation = torch.exp((features @ model.log_variance.weight.T + model.log_variance.bias) / 2)
    epsilon = torch.randn(6, 1, 8, generator=seeded(3))[:, 0]
    matching = ((mean + deviation * epsilon - model.autoencoder.encode(points)) ** 2).mean()
    diversity = diversity_loss(deviation, angles, amplitude=0.7, centre=100.0, width=40.0)
    torch.testing.assert_close(loss.matching, matching)
    torch.testing.assert_close(loss.diversity, diversity)
    torch.testing.assert_close(loss.total, matching + 3.0 * diversity)


# --- sampling ------------------------------------------------------------------------------------------------------


def test_samples_come_from_the_generator(data):
    images, _, _ = data
    model = small_model(ProbabilisticLatentMatching).eval()
    first, again, other = (model.predict(images, 5, seeded(seed)) for seed in (7, 7, 8))
    assert first.shape == (6, 5, 24, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:, 0], first[:, 1])
    assert model.predict_mean(images).shape == (6, 24, 3)


def test_sample_moments():
    mean, deviation = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])
    drawn = LatentDistribution(mean, deviation).sample(20000, seeded())[0]
    torch.testing.assert_close(drawn.mean(0), mean[0], atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.std(0), deviation[0], atol=0.02, rtol=0.02)


# --- training ------------------------------------------------------------------------------------------------------


def train(seed):
    """Forty steps of each stage; the histories and the final weights."""
    torch.manual_seed(seed)
    generator = seeded(seed)
    centres = torch.randn(16, 1, 3, generator=generator) * 0.5
    clouds = centres + 0.1 * torch.randn(16, 20, 3, generator=generator)
    images = centres.reshape(16, 3, 1, 1).expand(16, 3, 8, 8).contiguous()
    angles = torch.linspace(90, 180, 16)
    autoencoder = small_autoencoder()
    matching = LatentMatching(copy.deepcopy(autoencoder), small_encoder(in_channels=3))
    probabilistic = ProbabilisticLatentMatching(copy.deepcopy(autoencoder), small_encoder(in_channels=3))
    stages = {
        "autoencoder": (autoencoder, lambda: autoencoder.loss(clouds)),
        "matching": (matching, lambda: matching.loss(images, clouds)),
        "probabilistic": (probabilistic, lambda: probabilistic.loss(images, clouds, angles, generator).total),
    }
    histories = {}
    for name, (model, loss) in stages.items():
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model.train()
        histories[name] = []
        for _ in range(40):
            value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            histories[name].append(value.item())
    weights = [tensor for model, _ in stages.values() for tensor in model.state_dict().values()]
    return histories, weights


def test_training_lowers_the_losses_and_repeats_to_the_bit():
    histories, weights = train(0)
    for name, history in histories.items():
        assert sum(history[-5:]) < 0.7 * sum(history[:5]), name
    again, same = train(0)
    assert again == histories
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))


@pytest.mark.parametrize("kind", [LatentMatching, ProbabilisticLatentMatching])
def test_autoencoder_is_frozen(kind, data):
    images, points, angles = data
    model = small_model(kind)
    before = copy.deepcopy(model.autoencoder.state_dict())
    assert model.training
    assert not model.autoencoder.training
    loss = model.loss(images, points) if kind is LatentMatching else model.loss(images, points, angles).total
    loss.backward()
    assert all(p.grad is None for p in model.autoencoder.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.autoencoder.state_dict().items())


@pytest.mark.parametrize("kind", [LatentMatching, ProbabilisticLatentMatching])
def test_state_dict_round_trip(kind, data):
    images, points, _ = data
    model = small_model(kind)
    model.autoencoder.train()(points)  # running statistics off their start
    model.eval()
    other = small_model(kind).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.autoencoder(points), model.autoencoder(points))
    for a, b in zip(_tuple(other(images)), _tuple(model(images)), strict=True):
        assert torch.equal(a, b)


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)


def test_same_as_its_twin_on_the_reference(data):
    _, points, _ = data
    results = []
    for backend in (None, "reference"):
        torch.manual_seed(0)
        model = small_autoencoder()
        if backend is None:
            loss = model.loss(points)
            loss.backward()
        else:
            with paperops.use_backend(backend):
                loss = model.loss(points)
                loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for ours, twin in zip(*results, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-6)


# --- the demonstration's data --------------------------------------------------------------------------------------


def test_digits_of_the_demonstration():
    pytest.importorskip("sklearn")
    from paperops.demos.lmnet3d import data

    train, held_out = data.load(points=64, views=3, seed=0)
    assert len(train.points) + len(held_out.points) == 1797
    assert train.points.shape[1:] == (64, 3)
    assert train.images.shape[1:] == (3, 1, 8, 8)
    assert (train.angles[:, 0] == data.FRONT).all()
    assert ((train.angles >= data.FRONT) & (train.angles <= data.EDGE)).all()
    assert train.points.abs().max() <= 0.5
    again = data.load(points=64, views=3, seed=0)[1]
    assert all(torch.equal(a, b) for a, b in zip(held_out, again, strict=True))


def test_a_digit_seen_from_the_front_is_its_scan_and_from_the_edge_is_narrow():
    from paperops.demos.lmnet3d import data

    scan = torch.zeros(1, 8, 8)
    scan[0, 1:7, 1] = scan[0, 6, 1:7] = 1.0  # an L
    front, edge = (data.render(data.refine(scan), torch.tensor([angle])) for angle in (data.FRONT, data.EDGE))
    assert torch.corrcoef(torch.stack([front.flatten(), scan.flatten()]))[0, 1] > 0.9  # not 1: it was resampled twice
    assert (front[0, 0].sum(0) > 0.1).sum() >= 6
    assert (edge[0, 0].sum(0) > 0.1).sum() <= 5
    assert edge[0, 0, 6].sum() > edge[0, 0, 3].sum()  # the row with more ink stays darker


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PointAutoEncoder(0), ValueError, "num_points: expected at least 1, got 0"),
        (lambda: PointAutoEncoder(8, latent=2.5), TypeError, "latent: expected an integer, got 2.5"),
        (lambda: PointAutoEncoder(8, 8, encoder_widths=(4, -1)), ValueError, "encoder_widths"),
        (lambda: small_autoencoder()(torch.rand(2, 5, 2)), ValueError, r"points: expected \[B, N, 3\]"),
        (lambda: small_autoencoder()(torch.rand(2, 0, 3)), ValueError, "N >= 1"),
        (lambda: small_autoencoder().decode(torch.rand(2, 5)), ValueError, r"latents: expected \[B, 8\]"),
        (lambda: small_encoder(widths=(4,)), ValueError, "depths: expected one number for each of widths"),
        (lambda: small_encoder(last_kernel=4), ValueError, "last_kernel: expected an odd positive number"),
        (lambda: small_encoder()(torch.rand(2, 1, 8, 9)), ValueError, r"images: expected \[B, 1, 8, 8\]"),
        (lambda: small_model(LatentMatching, kind="l3"), ValueError, "kind"),
        (lambda: LatentMatching(PointAutoEncoder(8, 4), small_encoder()), ValueError, "encoder: expected latent 4"),
        (lambda: small_model(ProbabilisticLatentMatching, weight=-1.0), ValueError, "weight"),
        (lambda: small_model(ProbabilisticLatentMatching, width=0.0), ValueError, "width"),
        (lambda: latent_matching_loss(torch.rand(2, 3), torch.rand(2, 4)), ValueError, "target: expected the shape"),
        (lambda: diversity_loss(torch.rand(3, 4), torch.rand(4)), ValueError, "angles"),
        (
            lambda: small_model(ProbabilisticLatentMatching).predict(torch.rand(1, 1, 8, 8), 0),
            ValueError,
            "samples: expected at least 1",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
