"""What is said of models: the verdict, and every image that was changed or left out."""

import attrs
import numpy as np
import pytest
import torch

from cryofm_ops import FourierProjector, random_rotations
from cryofm_sampling import Assessment, LeftOut, RankedModels, Trust

BOX, SIZE, K = 16, 5.0, 5


def ranked(trust=None, **what):
    """Two models of five views: one of a blob, and one seen from elsewhere."""
    R = random_rotations(2 * K, generator=torch.Generator().manual_seed(0)).reshape(2, K, 3, 3)
    x = torch.zeros(2, BOX, BOX, BOX)
    x[:, 8, 9, 11] = x[:, 6, 7, 9] = 1
    return RankedModels(x, R, torch.zeros(2, K, 2), {"misfit": torch.tensor([0.1, 0.2])}, 7, trust, **what)


def assessed(models):
    R, s = models.rotations[0], models.shifts_px[0]
    seen = FourierProjector(R, s, (BOX, BOX, BOX))(models.x[0])
    images = torch.ones(K if models.used is None else int(models.used.max()) + 1, BOX, BOX).cumsum(-1)
    images[list(range(K)) if models.used is None else models.used] = 3 * seen + 1
    return Assessment.of(models, images, voxel_size=SIZE)


def test_images_are_beside_their_own_projections():
    """Numpy's correlation of each used image; those left out are not mixed in."""
    used = torch.tensor([0, 1, 3, 4, 6])
    found = assessed(ranked(used=used, left_out=(LeftOut(2, 0.1, 0.8), LeftOut(5, 0.2, 0.8))))
    assert found.used == (0, 1, 3, 4, 6)
    assert found.correlations == pytest.approx(1)
    images = torch.randn(K, BOX, BOX, generator=torch.Generator().manual_seed(1))
    other = Assessment.of(ranked(), images, voxel_size=SIZE)
    pairs = zip(images.numpy(), other.projections.numpy(), strict=True)
    assert other.correlations.tolist() == pytest.approx([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])
    assert other.differences_deg[0] < 0.1 < 15 < other.differences_deg[1]


def test_a_verdict_needs_chains_and_images_that_were_left_out():
    def verdict(differences, predicted, by_ring):
        parts = (torch.tensor(part) for part in (differences, predicted, predicted, by_ring))
        return assessed(ranked(Trust(*parts))).verdict

    far, well, images = [3.0, 9.0, 70.0], [0.9] * 5 + [0.4], [0.9, 0.8, 0.9, 1.0, 0.9]
    good = verdict(far, images, well)
    assert good.determined
    assert (good.agreeing, good.chains) == (2, 3)
    assert good.predicted_to == pytest.approx(80 / 5.8, abs=0.01)
    assert str(good) == (
        "2 of 3 other chains came to the same poses within 15°; images that are left out are predicted to 13.8 Å: "
        "the images determine the model"
    )
    assert not verdict([3.0, 60.0, 70.0], images, well).determined  # chains disagree
    assert not verdict(far, images, [0.9] * 3 + [0.4]).determined  # nothing is predicted to 20 Å
    assert not verdict(far, [0.9, 0.8, 0.9, 0.3, 0.9], well).determined  # one image fits none of the others
    assert verdict(far, images, [0.2] * 5).predicted_to == float("inf")
    assert "in doubt" in str(verdict(far, images, [0.2] * 5))


def test_every_image_that_was_changed_or_left_out_is_named_with_the_reason():
    trust = Trust(torch.tensor([80.0]), torch.ones(K), torch.tensor([0.3, 0.9, 0.9, 0.9, 0.9]), torch.ones(6))
    used, scales = torch.tensor([0, 1, 2, 4, 5]), torch.tensor([1, 3.04, -1, 1, -0.4, 1])
    models = ranked(trust, used=used, left_out=(LeftOut(3, 0.21, 0.74),), image_scales=scales)
    names = [f"{i}@c" for i in range(6)]
    found = assessed(models)
    assert found.lines(names)[:-1] == [
        "1@c is 3 times as intense beside the others; it was put right",
        "2@c is inverted beside the others; it was put right",
        "4@c is 0.4 times as intense and inverted beside the others; it was put right",
        "3@c was left out: models of the others predict it with a correlation of 0.21, half of the images with 0.74 "
        "or more",
        "0@c is hardly predicted by the others; look at it beside its projection",
    ]
    record = found.record(names)
    assert record["left_out"] == ["3@c"]
    assert "correlation of 0.21" in record["left_out_because"]["3@c"]
    assert record["doubtful"] == ["0@c"]
    assert not record["determined"]


def test_models_without_a_verdict_speak_of_one_another():
    models = ranked()
    (line,) = assessed(models).lines([])
    assert line == "0 of 1 other models have the same poses within 15°: they are in doubt, and so is the model"
    same = attrs.evolve(models, rotations=models.rotations[:1].repeat(2, 1, 1, 1))
    assert "1 of 1 other models" in assessed(same).lines([])[0]
    assert set(assessed(models).record([])) == {"correlations_of_the_best"}
