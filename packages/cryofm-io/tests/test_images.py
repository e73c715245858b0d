"""Stacks of images and RELION's STAR files are read as they are meant, and bad ones get the named error."""

import gzip
import sys
import warnings

import mrcfile
import numpy as np
import pytest

from cryofm_io import (
    CryoFMError,
    GeometryError,
    GridMismatchError,
    ImageCtf,
    ImageStack,
    InputFileError,
    MapWarning,
    Poses,
    images_on_disk,
    read_images,
    read_map,
)
from cryofm_io.image_read import _room_for

IMAGES = np.random.default_rng(0).normal(size=(5, 8, 8)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    """A function that writes a stack with mrcfile, as MRC2014 marks one, with header fields changed."""

    def write(data=IMAGES, name="stack.mrcs", voxel_size=1.5, **fields):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with mrcfile.new(path, data=data, overwrite=True) as file:
            file.set_image_stack()
            file.voxel_size = voxel_size
            for field, value in fields.items():
                file.header[field] = value
        return path

    return write


@pytest.fixture
def star(tmp_path):
    """A function that writes a STAR file."""

    def write(text, name="images.star"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", ["stack.mrcs", "stack.mrc", "stack.ccp4"])
def test_a_stack(store, name):
    path = store(name=name)
    stack = read_images(path)
    assert np.array_equal(stack.data, IMAGES)
    assert stack.data.dtype == np.float32
    assert stack.voxel_size == 1.5
    assert stack.names[2] == f"000003@{path}"
    assert stack.ctf is None
    assert stack.poses is None


def test_compressed(store, tmp_path):
    (tmp_path / "c.mrcs.gz").write_bytes(gzip.compress(store().read_bytes()))
    assert np.array_equal(read_images(tmp_path / "c.mrcs.gz").data, IMAGES)


def test_what_is_a_stack_and_what_a_volume(store):
    as_volume = {"ispg": 1, "mz": 5}
    assert len(read_images(store(**as_volume))) == 5  # the name says so
    assert len(read_images(store(name="old.mrc", ispg=0, mz=5))) == 5  # before MRC2014
    with pytest.raises(InputFileError, match=r"map\.mrc: expected a stack of images, found a volume .*\.mrcs"):
        read_images(store(name="map.mrc", **as_volume))
    with pytest.raises(InputFileError, match="found a volume"):  # many programs write 0 into maps, too
        read_images(store(np.repeat(IMAGES, 2, 0)[:8], "map.mrc", ispg=0, mz=8))
    with pytest.raises(InputFileError, match="expected a 3-D map"):
        read_map(store(name="stack.mrc"))


def test_what_lies_along_z_is_no_length(store):
    assert read_images(store(cella=(12, 12, 0))).voxel_size == 1.5
    assert read_images(store(cella=(12, 12, 99))).voxel_size == 1.5


def test_axes(store):
    assert np.array_equal(read_images(store(mapc=2, mapr=1)).data, IMAGES.transpose(0, 2, 1))
    with pytest.raises(InputFileError, match="sections of a stack must lie along z"):
        read_images(store(mapc=1, mapr=3, maps=2))


def test_voxel_size_rules(store):
    with pytest.raises(InputFileError, match=r"stack\.mrcs: no voxel size .*--voxel-size"):
        read_images(store(voxel_size=0))
    with pytest.warns(MapWarning, match=r"no voxel size .* 1\.3 Å asked for and used"):
        assert read_images(store(voxel_size=0), voxel_size=1.3).voxel_size == 1.3
    with pytest.warns(MapWarning, match="exactly 1 Å"):
        read_images(store(voxel_size=1))
    with pytest.warns(MapWarning, match=r"1\.5 Å in the file, 1\.7 Å asked for and used"):
        assert read_images(store(), voxel_size=1.7).voxel_size == 1.7
    with pytest.raises(GeometryError, match="not squares"):
        read_images(store(cella=(12, 13, 5)))


def test_shapes_that_no_reconstruction_takes(store, tmp_path):
    with pytest.raises(GeometryError, match=r"stack\.mrcs: expected square images .*\(5, 8, 7\)"):
        read_images(store(IMAGES[:, :, :7]))
    with pytest.raises(GeometryError, match=r"1 image\(s\): .*at least 2"):
        read_images(store(IMAGES[:1]))
    with pytest.raises(InputFileError, match="expected a stack of real images"):
        read_images(store(IMAGES.astype(np.complex64)))
    with pytest.raises(InputFileError, match=r"nowhere\.mrcs: no such file"):
        read_images(tmp_path / "nowhere.mrcs")


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_bad_images_are_named_and_left_out_or_refused(store):
    data = IMAGES.copy()
    data[1], data[3, 2, 1], data[4, 0, 0] = 0, np.nan, np.inf
    with (
        pytest.warns(
            MapWarning, match=r"1 of 5 images are constant .* first is 000002@.*stack\.mrcs; they are left out"
        ),
        pytest.warns(MapWarning, match=r"2 of 5 images are not finite everywhere, the first is 000004@"),
    ):
        images = read_images(store(data))
    assert [name[:6] for name in images.names] == ["000001", "000003"]
    assert np.array_equal(images.data, IMAGES[[0, 2]].astype(np.float32))
    with pytest.raises(InputFileError, match="images are not finite everywhere"):
        read_images(store(data), strict=True)
    data[2] = 5
    with pytest.raises(InputFileError, match="2 of 5 images are not finite"):
        read_images(store(data))


PARTICLES = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnImagePixelSize #3
_rlnImageSize #4
_rlnImageDimensionality #5
_rlnVoltage #6
_rlnSphericalAberration #7
_rlnAmplitudeContrast #8
opticsGroup1            2     1.250000      8    2   300.000000     2.700000     0.100000
opticsGroup2            1     1.250000      8    2   200.000000     1.400000     0.070000


# version 30001

data_particles

loop_
_rlnCoordinateX #1
_rlnImageName #2
_rlnMicrographName #3
_rlnOpticsGroup #4
_rlnDefocusU #5
_rlnDefocusV #6
_rlnDefocusAngle #7
_rlnAngleRot #8
_rlnAngleTilt #9
_rlnAnglePsi #10
_rlnOriginXAngst #11
_rlnOriginYAngst #12
  1200.0 000003@stack.mrcs MotionCorr/a.mrc  2  12000.0 11000.0  30.0  10.0  20.0  30.0  1.50 -2.50
   800.0 000001@stack.mrcs MotionCorr/a.mrc  1  15000.0 14000.0  40.0 -10.0  60.0 170.0  0.00  0.50

"""


def test_particles_of_relion_3_1(store, star):
    store(voxel_size=7)  # the STAR file knows better
    stack = read_images(star(PARTICLES))
    assert np.array_equal(stack.data, IMAGES[[2, 0]])
    assert stack.voxel_size == 1.25
    assert stack.ctf.defocus_u_angstrom.tolist() == [12000, 15000]
    assert stack.ctf.defocus_v_angstrom.tolist() == [11000, 14000]
    assert stack.ctf.defocus_angle_deg.tolist() == [30, 40]
    assert stack.ctf.voltage_kv.tolist() == [300, 200]
    assert stack.ctf.spherical_aberration_mm.tolist() == [2.7, 1.4]
    assert stack.ctf.amplitude_contrast.tolist() == [0.1, 0.07]
    assert stack.ctf.phase_shift_deg.tolist() == [0, 0]
    np.testing.assert_allclose(stack.poses.angles_deg, [[10, 20, 30], [-10, 60, 170]], atol=1e-9)
    assert stack.poses.shifts.tolist() == [[1.5, -2.5], [0, 0.5]]


def test_particles_of_relion_3_0(store, star):
    store(voxel_size=0)
    tags = ["Voltage", "DefocusU", "DefocusV", "DefocusAngle", "SphericalAberration", "AmplitudeContrast"]
    tags += ["DetectorPixelSize", "Magnification", "ImageName", "AngleRot", "AngleTilt", "AnglePsi"]
    tags += ["OriginX", "OriginY", "PhaseShift"]
    head = "\n".join(f"_rln{tag} #{i}" for i, tag in enumerate(tags, 1))
    row = "300 9000 8000 5 2.7 0.1 7 50000 00000{}@stack.mrcs 1 2 3 2 -1 90\n"
    stack = read_images(star(f"\ndata_\n\nloop_\n{head}\n{row.format(2)}{row.format(5)}\n"))
    assert np.array_equal(stack.data, IMAGES[[1, 4]])
    assert stack.voxel_size == pytest.approx(1.4)  # 7 μm / 50000
    np.testing.assert_allclose(stack.poses.shifts, [[2.8, -1.4]] * 2)
    assert stack.ctf.phase_shift_deg.tolist() == [90, 90]
    assert stack.ctf.voltage_kv.tolist() == [300, 300]


def model(*names):
    rows = "".join(f"{name} 0.5 3.2\n" for name in names)
    return (
        "data_model_general\n\n_rlnReferenceDimensionality 2\n_rlnPixelSize 1.75\n\ndata_model_classes\n\nloop_\n"
        f"_rlnReferenceImage #1\n_rlnClassDistribution #2\n_rlnAccuracyRotations #3\n{rows}\n"
        "data_model_groups\n\nloop_\n_rlnGroupNumber #1\n_rlnGroupNrParticles #2\n1 1000\n"
    )


def test_class_averages(store, star, tmp_path, monkeypatch):
    """Named from the folder of the project, from the current one, or from that of the STAR file."""
    store(name="Class2D/job012/run_classes.mrcs")
    project = model(*[f"00000{i}@Class2D/job012/run_classes.mrcs" for i in (1, 4)])
    for text, name in ((project, "Class2D/job012/run_model.star"), (project.replace("Class2D/job012/", ""), "b.star")):
        monkeypatch.chdir(tmp_path / "Class2D/job012")
        stack = read_images(star(text, name))
        assert np.array_equal(stack.data, IMAGES[[0, 3]])
        assert stack.voxel_size == 1.75
        assert stack.poses is None
        assert stack.shares.tolist() == [0.5, 0.5]
    monkeypatch.chdir(tmp_path)
    stack = read_images(star(project, "elsewhere.star").relative_to(tmp_path))
    assert stack.names[1] == "000004@Class2D/job012/run_classes.mrcs"  # as RELION knows it


def test_shares_of_classes_that_are_left(store, star):
    """An empty class goes with its share; RELION may have nan there."""
    images = IMAGES.copy()
    images[2] = 0
    store(images)
    rows = [f"00000{i}@stack.mrcs" for i in (1, 3, 5, 2)]
    text = (
        model(*rows)
        .replace("stack.mrcs 0.5", "stack.mrcs 0.25")
        .replace("000005@stack.mrcs 0.25", "000005@stack.mrcs nan")
    )
    with pytest.warns(MapWarning, match=r"1 of 4 images are constant \(empty classes\?\)"):
        stack = read_images(star(text))
    assert stack.shares.tolist() == [0.25, 0, 0.25]
    best = stack.chosen(np.argsort(-stack.shares, kind="stable")[:2])
    assert best.shares.tolist() == [0.25, 0.25]
    assert np.array_equal(best.data, images[[0, 1]])
    assert [name[:6] for name in best.names] == ["000001", "000002"]
    assert len(stack.chosen(stack.shares > 0)) == 2


def test_more_images_than_memory_holds_are_refused_before_they_are_read(tmp_path):
    with pytest.raises(InputFileError, match=r"1000000000 images of 512 × 256 pixels take 488281\.2 GiB"):
        _room_for(tmp_path / "many.star", 10**9, (256, 512))


def test_single_images_without_a_number(store, star):
    for i in (0, 1):
        store(IMAGES[i : i + 1], name=f"{i}.mrc")
    assert np.array_equal(read_images(star(model("0.mrc", "1.mrc"))).data, IMAGES[:2])
    store(name="class001.mrc", ispg=1, mz=5)
    with pytest.raises(InputFileError, match=r"class001\.mrc: expected one image, found shape \(5, 8, 8\) \(row 2"):
        read_images(star(model("0.mrc", "class001.mrc")))


def test_without_pixel_size_in_the_star_file_the_header_tells(store, star):
    store()
    store(name="other.mrcs", voxel_size=1.6)
    text = model("1@stack.mrcs", "2@stack.mrcs").replace("_rlnPixelSize 1.75\n", "")
    assert read_images(star(text)).voxel_size == 1.5
    with pytest.raises(GridMismatchError, match=r"pixels of 1\.5 and 1\.6 Å"):
        read_images(star(text.replace("2@stack", "2@other")))
    store(voxel_size=0)
    with pytest.raises(InputFileError, match="--voxel-size"):
        read_images(star(text))
    with pytest.warns(MapWarning, match="no pixel size in the STAR file, .* 2 Å asked for and used"):
        assert read_images(star(text), voxel_size=2.0).voxel_size == 2.0


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("3@stack", "3@lost", InputFileError, r"images\.star names lost\.mrcs, which is neither in"),
        ("000003@", "000009@", InputFileError, r"stack\.mrcs: there is no image 9 among 5 \(row 1"),
        ("000003@", "000000@", InputFileError, r"image name '000000@stack\.mrcs' in row 1"),
        ("3@stack", "3@small", GridMismatchError, r"000003@.*small\.mrcs is \(6, 6\) and 000001@.*\(8, 8\)"),
        ("2     1.25", "2     1.50", GridMismatchError, r"pixels of 1\.25 and 1\.5 Å"),
        ("opticsGroup1            2", "opticsGroup1            7", InputFileError, r"optics groups \[2\.0\]"),
        ("_rlnVoltage", "_rlnSomething", InputFileError, "no rlnVoltage; add"),
        ("11000.0", "eleven", InputFileError, "rlnDefocusV in data_particles holds no number .*'eleven'"),
        ("_rlnImageName", "_rlnNothing", InputFileError, "no table lists images"),
        ("-2.50", "", InputFileError, "not a readable STAR file"),
    ],
)
def test_bad_star_files(store, star, old, new, error, message):
    store()
    store(IMAGES[:, :6, :6], "small.mrcs")
    assert PARTICLES.count(old) == 1
    with pytest.raises(error, match=message):
        read_images(star(PARTICLES.replace(old, new)))


def test_option_and_the_star_file(store, star):
    store()
    path = star(PARTICLES)
    with pytest.warns(MapWarning, match=r"images\.star: voxel size 1\.25 Å in the file, 1\.5 Å asked"):
        assert read_images(path, voxel_size=1.5).voxel_size == 1.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_images(path, voxel_size=1.26).voxel_size == 1.26


def test_images_multiplied_by_their_ctf_are_told(store, star):
    store()
    text = PARTICLES.replace("_rlnImageDimensionality #5", "_rlnCtfDataAreCtfPremultiplied #5")
    with pytest.warns(MapWarning, match="multiplied by their CTF"):
        read_images(star(text))


def test_star_files_need_no_gemmi(store, star, monkeypatch):
    monkeypatch.setitem(sys.modules, "gemmi", None)
    store()
    assert len(read_images(star(PARTICLES))) == 2


def test_as_many_of_everything():
    two = Poses(np.stack([np.eye(3)] * 2), np.zeros((2, 2)))
    with pytest.raises(GeometryError, match="5 images and 2 poses"):
        ImageStack(IMAGES, 1.5, poses=two)
    with pytest.raises(GeometryError, match="5 images and 1 names"):
        ImageStack(IMAGES, 1.5, names=["a"])
    with pytest.raises(GeometryError, match="one value per image"):
        ImageCtf(*[np.zeros(2)] * 6, np.zeros(3))
    with pytest.raises(GeometryError, match="must be positive"):
        ImageStack(IMAGES, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_images_on_disk_are_those_that_are_read(store, star, tmp_path, packed):
    """Bytes above 127 by IMOD's mark among them, which look like negative numbers."""
    data = np.arange(5 * 8 * 8, dtype=np.int64).reshape(5, 8, 8) % 251
    path = store(data.astype(np.uint8).view(np.int8))
    content = bytearray(path.read_bytes())
    content[152:160] = b"IMOD" + bytes(4)
    path.write_bytes(content)
    name = "stack.mrcs"
    if packed:
        name = "packed.mrcs.gz"
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    rows = "".join(f"{k}@{name} {10 * k} 20 30\n" for k in (4, 2, 5))
    listed = star("data_\nloop_\n_rlnImageName\n_rlnAngleRot\n_rlnAngleTilt\n_rlnAnglePsi\n" + rows)
    images, whole = images_on_disk(listed), read_images(listed)
    assert len(images) == 3
    assert images.voxel_size == whole.voxel_size == 1.5
    assert np.array_equal(images.read(range(3)), whole.data)
    assert np.array_equal(images.read([2, 0]), data[[4, 3]])
    assert np.array_equal(images.poses.rotations, whole.poses.rotations)


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_values_on_disk_are_looked_at_as_they_are_read(store, star):
    data = IMAGES.copy()
    data[2, 1, 1] = np.nan
    store(data)
    images = images_on_disk(star("data_\nloop_\n_rlnImageName\n1@stack.mrcs\n3@stack.mrcs\n"))
    assert np.array_equal(images.read([0])[0], data[0])
    with pytest.raises(InputFileError, match=r"000003@stack\.mrcs: there are values that are not finite"):
        images.read([0, 1])


def test_the_largest_classes_come_first_and_empty_ones_not_at_all():
    data = np.random.default_rng(0).normal(size=(5, 8, 8))
    stack = ImageStack(data, 2.0, [f"{i}@c" for i in range(5)], shares=[0.2, 0.3, 0.001, 0.1, 0.399])
    assert stack.largest().names == ("4@c", "1@c", "0@c", "3@c")
    assert np.array_equal(stack.largest(2).data, stack.data[[4, 1]])
    assert stack.largest(least=0).names[-1] == "2@c"
    with pytest.raises(CryoFMError, match="rlnClassDistribution"):
        ImageStack(data, 2.0).largest(2)
