"""The clip measure: how often the top-1 class changes between frames."""

import re
from fractions import Fraction
from itertools import groupby

import numpy as np
import pytest

import aa_flax
from aa_flax import InputError
from aa_flax.data.clips import Clip, Header, read_frames
from aa_flax.evaluation.measures.clip import flicker, moving_average, odd_window
from aa_flax.report import gather, write_report
from tests.evaluation.random_images import SIZES, flat, on_host, probabilities, write
from tests.evaluation.tiny import CROP

MARGIN, FPS = 3, 10.0


def measured(predict, clip, **options):
    return aa_flax.evaluate(predict, clip, ("clip",), name="flat", **SIZES, **options)


def slow_answers(pixels):
    crops = [image[MARGIN:, MARGIN:][:CROP, :CROP] for image in pixels]
    return np.array([probabilities(crop) for crop in crops])


def test_flips_and_runs_are_those_of_looking_at_each_frame_by_itself(tmp_path):
    pixels = write(tmp_path / "clip", count=11)  # frame10 is the last, not the third
    top = slow_answers(pixels).argmax(1)
    runs = [len(list(run)) for _, run in groupby(top)]
    found = measured(flat, tmp_path / "clip", fps=FPS)["clip"]
    assert found["num_frames"] == 11
    assert found["flips"] == len(runs) - 1
    assert found["flips_per_second"] == pytest.approx((len(runs) - 1) / 10 * FPS)
    assert found["runs"] == len(runs)
    assert found["run_median"] == np.median(runs)
    assert found["run_median_seconds"] == pytest.approx(np.median(runs) / FPS)
    assert (found["run_shortest"], found["run_longest"]) == (min(runs), max(runs))
    assert found["seconds"] == pytest.approx(1.1)


def test_the_smoothed_curve_is_the_mean_of_the_frames_around(tmp_path):
    pixels = write(tmp_path / "clip", count=9)
    answers = slow_answers(pixels)
    smooth = np.array([answers[max(0, i - 1) : i + 2].mean(0) for i in range(9)])
    output = tmp_path / "r.json"
    found = measured(on_host, tmp_path / "clip", fps=FPS, window=0.3, output=output)["clip"]
    assert found["window"] == 3
    with np.load(tmp_path / found["file"]) as arrays:
        most = arrays["most_frequent"]
        assert np.allclose(arrays["probability"], answers[:, most], atol=1e-5)
        assert np.allclose(arrays["smoothed"], smooth[:, most], atol=1e-5)
        assert arrays["smoothed_top1"].tolist() == smooth.argmax(1).tolist()
        assert arrays["run_lengths"].sum() == 9
    changes = np.count_nonzero(np.diff(smooth.argmax(1)))
    assert found["flips_per_second_smoothed"] == pytest.approx(changes / 8 * FPS)


@pytest.mark.parametrize(
    ("fps", "seconds", "frames"), [(25, 0.5, 13), (25, 0, 1), (10, 0.3, 3), (30, 0.1, 3)]
)
def test_the_window_is_the_nearest_odd_number_of_frames(fps, seconds, frames):
    assert odd_window(fps, seconds) == frames


def test_a_moving_average_keeps_a_constant_and_its_window_may_exceed_the_clip():
    assert np.allclose(moving_average(np.full((4, 2), 7.0), np.arange(4), 3), 7)
    assert np.allclose(moving_average(np.array([[1.0], [2.0], [6.0]]), np.arange(3), 101), 3)


def test_frames_in_memory_equal_the_clip_and_the_source_of_the_rate_is_recorded(tmp_path):
    pixels = write(tmp_path / "clip", count=5)
    of_folder = measured(flat, tmp_path / "clip")["clip"]
    assert (of_folder["fps"], of_folder["fps_from"]) == (25, "default")
    for clip in (pixels, list(pixels)):
        found = measured(flat, clip, fps=25.0)["clip"]
        assert found["flips_per_second"] == of_folder["flips_per_second"]
        assert found["fps_from"] == "--fps"


def test_the_report_compares_two_models(tmp_path):
    write(tmp_path / "clip")
    models = {"plain": flat, "steady": lambda x: x.mean((1, 2))}
    for name, predict in models.items():
        output = tmp_path / "runs" / f"{name}.json"
        aa_flax.evaluate(predict, tmp_path / "clip", "clip", name=name, output=output, **SIZES)
    rows, _ = gather([tmp_path / "runs"])
    assert "flips a second" in write_report(rows, tmp_path / "report").read_text()
    for suffix in (".png", ".pdf", ".svg"):
        assert (tmp_path / "report" / f"clip{suffix}").stat().st_size > 0


def test_what_is_no_clip_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*nowhere \(--clip\)"):
        measured(flat, tmp_path / "nowhere")
    write(tmp_path / "one", count=1)
    with pytest.raises(InputError, match="only one frame; flips need two or more"):
        measured(flat, tmp_path / "one")
    with pytest.raises(InputError, match=r"frame0\.png is one image; give the folder of all fram"):
        measured(flat, tmp_path / "one" / "frame0.png")
    with pytest.raises(InputError, match=r"contains no files; .*; folders below it are not read"):
        measured(flat, tmp_path)
    with pytest.raises(InputError, match="--fps is the number of frames a second, more than 0"):
        measured(flat, np.zeros((2, 16, 16, 3), np.uint8), fps=0.0)


def test_a_bad_frame_is_named(tmp_path):
    write(tmp_path / "clip", count=3)
    write(tmp_path / "other", count=4, size=(18, 16))
    (tmp_path / "other" / "frame3.png").rename(tmp_path / "clip" / "frame3.png")
    with pytest.raises(InputError, match=r"sizes: .*frame3\.png \(frame 3\) has 18 x 16 pixels, "):
        measured(flat, tmp_path / "clip")
    (tmp_path / "clip" / "frame3.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"cannot read image .*frame3\.png: .*a clip needs all of"):
        measured(flat, tmp_path / "clip")


def test_small_frames_are_refused(tmp_path):
    write(tmp_path / "clip", size=(9, 16))
    with pytest.raises(InputError, match=r"clip has 9 x 16 pixels, but a square of 10 is cut"):
        measured(flat, tmp_path / "clip")


def test_outputs_that_are_not_finite_are_refused():
    logits = np.zeros((4, 3))
    logits[2, 1] = np.nan
    with pytest.raises(InputError, match=r"not finite for 1 of 4 frames, the first .* frame 2"):
        flicker(logits, seconds=np.arange(4.0), window_seconds=0.5)


def test_a_video_without_pyav_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"pip install 'aa_flax\[video\]'; or give a folder"):
        measured(flat, tmp_path / "film.mp4")


def film(path, count=7, codec="ffv1", pixel="bgr0", times=None, **options):
    """Writes a video of random frames, lossless by default, 10 per second or at `times` (ms)."""
    av = pytest.importorskip("av")
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = pixel
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return pixels


def test_a_video_is_its_frames_at_the_rate_of_their_times(tmp_path):
    pixels = film(tmp_path / "film.mkv")
    assert [
        np.asarray(i).tolist() for _, i in read_frames(tmp_path / "film.mkv")
    ] == pixels.tolist()
    found = measured(flat, tmp_path / "film.mkv")["clip"]
    assert (found["fps"], found["fps_from"]) == (pytest.approx(10), "times")
    assert (found["header_fps"], found["seconds_missing"]) == (10, 0)
    assert found["flips"] == measured(flat, pixels)["clip"]["flips"]
    assert measured(flat, tmp_path / "film.mkv", fps=5.0)["clip"]["fps"] == 5


def test_another_video_of_the_same_name_and_size_is_another_clip(tmp_path, monkeypatch):
    film(tmp_path / "film.mkv")
    monkeypatch.setattr(
        "aa_flax.data.clips.read_header", lambda _: Header(10.0, 0.7, True, (16, 16), 0)
    )
    before = Clip(tmp_path / "film.mkv").described()
    content = bytearray((tmp_path / "film.mkv").read_bytes())
    content[-1] ^= 1
    (tmp_path / "film.mkv").write_bytes(content)
    after = Clip(tmp_path / "film.mkv").described()
    assert after.pop("digest") != before.pop("digest")
    assert after == before


def test_what_is_no_video_is_refused(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(InputError, match=r"film\.mp4 is not a video that PyAV reads"):
        measured(flat, tmp_path / "film.mp4")


def test_seconds_are_those_of_the_frames_own_times(tmp_path, capsys):
    times = [700, 733, 766, 800, 1000, 1200, 1300, 1800, 2000]
    pixels = film(tmp_path / "screen.mkv", count=9, times=times)
    top = slow_answers(pixels).argmax(1)
    begins = [i for i in range(9) if i == 0 or top[i] != top[i - 1]]
    ends = [*(times[i] for i in begins[1:]), 2000 + 1300 / 8]
    found = measured(flat, tmp_path / "screen.mkv", window=0)["clip"]
    assert found["flips_per_second"] == pytest.approx((len(begins) - 1) / 1.3)
    assert found["seconds"] == pytest.approx(1.3 * 9 / 8)
    lengths = [end - times[i] for i, end in zip(begins, ends, strict=True)]
    assert found["run_median_seconds"] == pytest.approx(np.median(lengths) / 1000)
    assert found["flips_per_second_smoothed"] == pytest.approx(found["flips_per_second"])
    assert "says 10 frames a second, the times of its frames say 6.1538" in capsys.readouterr().out


def test_the_moving_average_is_over_times_not_over_frames():
    found = moving_average(np.array([[1.0], [2.0], [6.0]]), np.array([0.0, 1.0, 3.0]), 3)
    assert found.ravel().tolist() == [1.5, 1.5, 6]


@pytest.mark.parametrize(
    ("name", "codec", "pixel", "message"),
    [
        ("film.mkv", "ffv1", "bgr0", None),  # reported
        ("film.webm", "libvpx", "yuv420p", None),
        (
            "film.mp4",
            "mpeg4",
            "yuv420p",
            r"film\.mp4: it is damaged, or the file was cut off there",
        ),
        ("film.flv", "flv", "yuv420p", r"cannot read frame \d+ of .*film\.flv"),
        ("film.gif", "gif", "rgb8", r"film\.gif was cut off: its end is missing"),
    ],
)
def test_a_video_that_was_cut_off_is_refused_or_reported(tmp_path, name, codec, pixel, message):
    path = tmp_path / name
    film(path, 20, codec, pixel, **({"movflags": "faststart"} if name == "film.mp4" else {}))
    whole = measured(flat, path)["clip"]
    assert (whole["num_frames"], whole["seconds_missing"]) == (20, 0)
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    if message:
        with pytest.raises(InputError, match=message):
            measured(flat, path)
    else:
        found = measured(flat, path, fps=5.0)["clip"]
        assert found["num_frames"] < 20
        assert found["seconds_missing"] == pytest.approx(2 - found["num_frames"] / 10, abs=0.01)


def test_an_avi_cut_off_between_two_frames_is_reported(tmp_path):
    film(tmp_path / "film.avi", 20, "mpeg4", "yuv420p")
    content = (tmp_path / "film.avi").read_bytes()
    frames = [match.start() for match in re.finditer(b"00dc", content[content.index(b"movi") :])]
    (tmp_path / "film.avi").write_bytes(content[: content.index(b"movi") + frames[10]])
    assert measured(flat, tmp_path / "film.avi")["clip"]["seconds_missing"] == pytest.approx(1)


def test_frames_without_times_need_a_rate(tmp_path):
    path = tmp_path / "film.h264"
    film(path, 7, "libx264", "yuv420p")
    with pytest.raises(InputError, match=r"the frames of .*film\.h264 have no times; give --fps"):
        measured(flat, path)
    assert measured(flat, path, fps=10.0)["clip"]["seconds"] == pytest.approx(0.7)


def test_times_that_do_not_ascend_need_a_rate(tmp_path):
    film(tmp_path / "film.mkv")
    clip = Clip(tmp_path / "film.mkv")
    for times in ([0, 0.1, 0.1], [0, 0.1, None], [0, 0.1, -0.1]):
        with pytest.raises(InputError, match=r"frame 2 of .* has no time after that of th"):
            clip.seconds(times)
    assert clip.seconds([-0.2, -0.1, 0]).tolist() == [-0.2, -0.1, 0]
