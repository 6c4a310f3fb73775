"""The run report: complete, self-contained, safe with any text, and possible at any moment of a run."""

import base64
import io
import json
import re
import tracemalloc
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_run import COLUMNS, CONFIG, SIDE, grid, metrics, write_json, write_layout, write_rows, write_run

from deploy.report import account, page, read, write_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of six steps with four fixed prompts and three grids."""
    return write_run(tmp_path / "pets")


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    EMPTY = ("meta", "img", "br", "rect", "circle", "path", "line", "polyline", "polygon")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def made(run: Path) -> tuple[str, Page]:
    text = write_report(run).read_text(encoding="utf-8")
    return text, Page(text)


def headings(text: str) -> list[str]:
    return re.findall(r"<h2 [^>]*>([^<]+)</h2>", text)


def test_every_section_stands_in_order(run: Path) -> None:
    text, shown = made(run)
    assert headings(text) == [
        "Before and after", "Reward", "Over-optimisation", "Images through training", "Policy updates", "Noise floor",
        "Time", "Masked images", "Command and environment", "Config",
    ]  # fmt: skip
    assert "Mean reward rose from −3.75 to −2.50 kB in 6 steps (96 reward queries), 48 s." in shown.words
    assert "LoRA digest: c0ffee" in shown.text and "ddpo train pets" in shown.text
    assert "The reward is minus the size of the image as a JPEG, in kB." in shown.words
    assert "Running or interrupted" not in shown.text


def test_texts_of_others_are_escaped(run: Path) -> None:
    hostile = '<script>alert("1")</script>'
    write_rows(run, [{"step": 2, "image": 21, "fate": "masked", "reason": hostile}], "ledger.jsonl")
    write_json(run / "run.json", {"command": hostile, hostile: hostile})
    write_rows(run, [metrics(7, -2.0) | {"rewards": {hostile: 1.0, "b": 2.0}}])
    text, shown = made(run)
    assert not shown.all("script") and "<b>bee" not in text and "<em>" not in text
    assert [image["alt"] for image in shown.all("img")][2] == "a dog & a <b>bee</b>, before training"
    assert escape(CONFIG) in text and "pets & <em>friends</em>" in shown.text
    assert shown.text.count(hostile) >= 5


def test_nothing_is_fetched(run: Path) -> None:
    text, shown = made(run)
    keys = ("src", "href", "srcset", "data", "poster")
    links = [link for _, attributes in shown.tags for key in keys if (link := attributes.get(key))]
    assert [link for link in links if not link.startswith("data:image/")] == ["https://arxiv.org/abs/2305.13301"]
    assert shown.all("a") and not [tag for tag in ("script", "link", "iframe", "object") if shown.all(tag)]
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_tiles_are_the_pixels_of_the_grids(run: Path) -> None:
    images = made(run)[1].all("img")
    assert len(images) == 4 * 2 + 4 * 3
    data = base64.b64decode(str(images[3]["src"]).split(",")[1])
    tile = grid(6).crop((SIDE, 0, 2 * SIDE, SIDE))
    assert Image.open(io.BytesIO(data)).convert("RGB").tobytes() == tile.tobytes()
    assert all(image["alt"] and image["width"] == str(SIDE) for image in images)


def test_pairs_show_known_rewards_only(run: Path) -> None:
    text, _ = made(run)
    assert re.findall(r'class="value">([^<]+)<', text) == [
        "−4.00 → −2.50 kB", "−3.50 → −3.50 kB", "−3.00 → −3.00 kB",
    ]  # fmt: skip
    (run / "images/scores.json").unlink()
    text, shown = made(run)
    assert 'class="value"' not in text and "fixed prompts and noise" not in shown.text


def test_large_images_are_shrunk_and_the_page_stays_small(run: Path) -> None:
    noise = Image.effect_noise((512 * COLUMNS, 1024), 60).convert("RGB")
    for step in (0, 3, 6):
        noise.save(run / f"images/{step:06d}.png", compress_level=1)
    write_layout(run, 512)
    text, shown = made(run)
    data = base64.b64decode(str(shown.all("img")[0]["src"]).split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (288, 288)
    assert len(text) < 2_000_000


def test_an_interrupted_run_says_so(run: Path) -> None:
    (run / "result.json").unlink()
    write_rows(run, [metrics(1, -3.75), metrics(2, -3.0)])
    shown = made(run)[1]
    assert "Running or interrupted: 2 of 6 steps are logged." in shown.words
    assert "from −3.75 to −3.00 kB in 2 steps (32 reward queries), 16 s." in shown.words
    assert "LoRA digest" not in shown.text


def test_a_line_that_a_crash_cut_short_is_skipped_and_named(run: Path) -> None:
    (run / "result.json").unlink()
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(metrics(7, 9.0))[:-40])
    shown = made(run)[1]
    assert "Cut short and left out: metrics.jsonl line 7." in shown.words
    assert "6 of 6 steps are logged" in shown.words


def test_one_step_one_grid(run: Path) -> None:
    for name in ("result.json", "images/000003.png", "images/000006.png"):
        (run / name).unlink()
    write_rows(run, [metrics(1, -3.75)])
    shown = made(run)[1]
    assert "Mean reward was −3.75 kB in 1 step (16 reward queries), 8.0 s." in shown.words
    assert "no later ones are logged yet" in shown.text and len(shown.all("img")) == 8


def test_no_images(run: Path) -> None:
    for path in (run / "images").iterdir():
        path.unlink()
    text, shown = made(run)
    assert shown.text.count("No images are logged.") == 2 and not shown.all("img")
    assert headings(text) == list(page.SECTIONS)


def test_a_run_that_has_just_begun(run: Path) -> None:
    for path in [run / "metrics.jsonl", run / "result.json", *(run / "images").iterdir()]:
        path.unlink()
    text, shown = made(run)
    assert headings(text) == list(page.SECTIONS)
    assert "No step has a reward yet." in shown.text and "0 of 6 steps are logged" in shown.text


def test_masked_images_by_reason(run: Path) -> None:
    assert "None: every image that was drawn was trained on." in made(run)[1].text
    whys = ((2, "slow"), (4, "slow"), (4, "grey"))
    rows = [{"step": step, "image": 21, "fate": "masked", "reason": why} for step, why in whys]
    write_rows(run, [{"step": 2, "drawn": [16, 31]}, *rows, {"step": 4, "fate": "trained"}], "ledger.jsonl")
    text, shown = made(run)
    assert "3 images left out of the updates" in shown.words
    assert '<th scope="row">slow</th><td>2</td><td>2, 4</td>' in text
    assert '<th scope="row">grey</th><td>1</td><td>4</td>' in text


def test_of_a_long_ledger_only_what_is_shown_stays_in_memory(run: Path) -> None:
    masked = {"fate": "masked", "reason": "slow"}
    rows = [{"step": 1 + i // 1000, "image": i, **(masked if i % 10 else {"fate": "trained"})} for i in range(20_000)]
    write_rows(run, rows, "ledger.jsonl")
    with (run / "ledger.jsonl").open("a") as lines:
        lines.write('{"step": 3, "image": 7, "fa\n{"step": 3, "ima')
    tracemalloc.start()
    try:
        found = read.read_run(run)
        assert tracemalloc.get_traced_memory()[1] < 300_000 < (run / "ledger.jsonl").stat().st_size / 4
    finally:
        tracemalloc.stop()
    assert found.masked == {"slow": dict.fromkeys(range(1, 21), 900)} and found.images_masked == 18_000
    assert found.cut_short == ["ledger.jsonl line 20001", "ledger.jsonl line 20002"]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        write_report(tmp_path)


def test_a_report_that_cannot_be_made_leaves_the_old_one(run: Path) -> None:
    old = write_report(run).read_bytes()
    (run / "config.toml").write_text("steps = ")
    with pytest.raises(ValueError, match="Invalid value"):
        write_report(run)
    assert (run / "report.html").read_bytes() == old


def test_a_report_that_cannot_be_written_leaves_nothing(run: Path) -> None:
    (run / "report.html").mkdir()
    before = sorted(run.iterdir())
    with pytest.raises(OSError, match="directory"):
        write_report(run)
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize(
    ("last", "verb"),
    [(-2.0, "rose"), (-6.0, "fell"), (-3.9, r"did not change measurably \(−4.00 to −3.90 kB\)")],
)
def test_the_verb_follows_the_standard_error(run: Path, last: float, verb: str) -> None:
    write_rows(run, [metrics(1, -4.0), metrics(2, last)])
    state = read.read_run(run)
    assert account.change_error(state) == pytest.approx((2 * 0.4**2 / 16) ** 0.5)
    assert re.match(f"Mean reward {verb}", account.statement(state))


@pytest.mark.parametrize(
    ("kind", "weight", "unit", "diamonds"),
    [("incompressibility", 1.0, "kB", 3), ("compressibility", 0.5, "", 0), ("function", 1.0, "", 3)],
)
def test_a_number_is_in_kilobytes_only_where_it_is_one(
    run: Path, kind: str, weight: float, unit: str, diamonds: int
) -> None:
    config = CONFIG.replace('"compressibility"', f'"{kind}"').replace("1.0", str(weight))
    (run / "config.toml").write_text(config)
    state = read.read_run(run)
    assert state.unit == unit and len(state.fixed_means) == diamonds


def test_several_rewards_get_a_curve_each_and_no_unit(run: Path) -> None:
    (run / "config.toml").write_text(CONFIG + '\n[rewards.taste]\nkind = "function"\nweight = 1.0\n')
    write_rows(run, [metrics(s, -3.0) | {"rewards": {"size": -3.0, "taste": s}} for s in (1, 2, 3)])
    text, _ = made(run)
    assert "taste from 1.00 to 3.00" in text and "size from −3.00 to −3.00" in text and "kB" not in text


def test_staleness_is_drawn_from_the_steps_that_logged_it(run: Path) -> None:
    text, shown = made(run)
    assert "effective sample size from 0.950 to 0.700" in text and "The lag is 0 steps." in shown.words
    rows = [metrics(step, -3.0) | {"lag": 1} for step in range(1, 4)]
    write_rows(run, [{k: v for k, v in rows[0].items() if k != "effective_sample_size"}, *rows[1:]])
    text, shown = made(run)
    assert "effective sample size from 0.900 to 0.850" in text and "The lag is 1 step." in shown.words
    write_rows(run, [{k: v for k, v in row.items() if k != "effective_sample_size"} for row in rows])
    assert "ffective sample size" not in made(run)[0]


@pytest.mark.parametrize(("correction", "around"), [("clip", True), ("truncate", False), ("decoupled", False)])
def test_the_clip_range_is_drawn_where_it_is_around_the_old_policy(run: Path, correction: str, around: bool) -> None:
    (run / "config.toml").write_text(CONFIG + f'correction = "{correction}"\n')
    assert ("1 + clip" in made(run)[0]) is around


def test_deltas_are_called_noise_where_the_weights_are_the_same(run: Path) -> None:
    assert "The largest is 6×10⁻⁷, 0.60 % of the clip range." in made(run)[1].words
    write_rows(run, [metrics(1, -3.0, 0.0)])
    assert "It is exactly zero everywhere." in made(run)[1].text
    (run / "config.toml").write_text(CONFIG.replace("lag = 0", "lag = 2"))
    shown = made(run)[1]
    assert "the policy's own change" in shown.words and "whatever differs is numerical noise" not in shown.words
