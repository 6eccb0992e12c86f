"""The page: one file without a request, readable without eyes, small for 64 peers, safe with any names."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from p2pft_flower.report.page.beside import find_attention
from p2pft_flower.report.page.build import build
from p2pft_flower.report.page.document import as_html, as_markdown
from p2pft_flower.report.page.material import Material
from p2pft_flower.report.page.reading import find_runs
from p2pft_flower.report.page.tidy import outcomes_csv
from p2pft_flower.report.page.verdicts import Answers
from tests.report.page.made_up import BACK, LOST, comparison, made_up, write

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What a page consists of: its elements with attributes, and the text of each tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.words.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in {*self.open}:
            self.words[tag][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def answers_of(runs, classes, images=20):
    """Return made-up answers of all tails: each peer names nine of ten images right."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(classes)), images)
    found = {}
    for run in runs:
        found[run.label] = []
        for peer in run.results.peers:
            wrong = rng.random(len(labels)) < 0.1
            predicted = np.where(wrong, rng.integers(len(classes), size=len(labels)), labels)
            found[run.label].append(Answers(peer.peer, classes, labels, predicted))
    return found


def report_of(folder, *, scored=True, figures=()):
    runs = find_runs([folder])
    material = Material(runs, answers_of(runs, runs[0].classes) if scored else {})
    return build(material, figures)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return report_of(comparison(tmp_path_factory.mktemp("c"), views=[LOST, BACK]))


@pytest.fixture(scope="module")
def page(compared):
    return as_html(compared)


def test_the_page_makes_no_request_and_runs_no_script(page):
    read = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in read.elements}
    addresses = [
        value
        for _, attributes in read.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "poster", "srcset", "data")
    ]
    assert addresses
    assert all(address.startswith(("#", "data:image/")) for address in addresses)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page
    assert re.findall(r"https?://[^\"' <]*", page) == []


def test_every_table_has_headers_and_a_caption_and_every_chart_a_title_and_words(page):
    read = Page(page)
    tables = read.all("table")
    assert len(tables) > 8
    assert len(read.words["caption"]) == len(tables)
    assert all(header.get("scope") in ("col", "row") for header in read.all("th"))
    charts = [svg for svg in read.all("svg") if svg.get("role") == "img"]
    assert len(charts) == len(read.all("svg")) > 8
    ids = {attributes["id"] for _, attributes in read.elements if "id" in attributes}
    for chart in charts:
        assert set(chart["aria-labelledby"].split()) <= ids
    assert len(read.words["desc"]) == len(charts)
    assert all(
        words.strip() for tag in ("title", "desc", "caption", "h2", "figcaption") for words in read.words[tag]
    )


def test_ids_are_unique_and_every_link_in_the_page_leads_somewhere(page):
    read = Page(page)
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for tag, a in read.elements for key in ("href",) if a.get(key, "").startswith("#")]
    used = re.findall(r"url\(#([^)]+)\)", page)
    assert links
    assert used
    assert {*links, *used} <= set(ids)


def test_charts_take_their_colours_from_the_page_which_is_light_or_dark(page):
    charts = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--c0)" in charts
    assert "var(--ink)" in charts
    assert set(re.findall(r"#[0-9a-f]{6}\b", charts.lower())) == set()
    assert "prefers-color-scheme: dark" in page
    variables = set(re.findall(r"var\((--\w+)\)", page))
    for block in re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL):
        assert variables <= set(re.findall(r"(--\w+):", block))


def test_the_four_questions_are_answered_before_anything_else(compared, page):
    assert [answer.word for answer in compared.answers] == [
        "Yes, every peer (p2pft)",
        "No (p2pft)",  # the made-up answers are wrong at random
        "Cheaper: 0.1 × FedAvg's bytes and 0.5 × its seconds to 95% of its accuracy, "
        "0.1 × the bytes to the end (p2pft)",
        "1 peer lost on the way (p2pft)",
    ]
    read = Page(page)
    assert read.words["h2"][0] == "The answers"
    assert read.words["h3"] == [answer.question for answer in compared.answers]


def test_every_section_begins_with_a_sentence_made_of_its_numbers(compared):
    sections = {section.key: section for section in compared.sections}
    assert all(section.sentences and section.sentences[0].endswith(".") for section in sections.values())
    assert sections["runs"].sentences[0] == (
        "4 runs: centralized ends with the highest mean accuracy, 0.960, and local with the lowest, 0.250."
    )
    assert sections["peers"].sentences[0] == (
        "4 peers exchange along 4 edges of the directed graph directed-ring:4; its weights are doubly "
        "stochastic."
    )
    assert "8 classes are held by one peer alone" in sections["peers"].sentences[1]
    assert "class" in sections["classes"].sentences[0]


def tables(report, key):
    section = next(section for section in report.sections if section.key == key)
    return {table.title: table for table in section.tables}


def test_tables_have_the_results_own_numbers(compared):
    rows = {row[0]: row for row in tables(compared, "runs")["The runs"].rows}
    assert rows["p2pft"][1:7] == ["completed", "4", "300", "0.950", "0.950 to 0.950", "0.940"]
    assert rows["p2pft"][9:] == ["4.0 MB", "3.0 s", "12.0 s"]
    unseen = tables(compared, "learning")["Accuracy on the classes never seen, by peer, at the end"]
    assert unseen.header == ["peer", "p2pft", "fedavg", "local"]
    assert unseen.rows[0] == ["0", "0.940", "0.940", "0.000"]


def test_a_run_that_was_stopped_counts_the_iterations_that_it_has_done(tmp_path):
    results = made_up(error="peer 0: the run was stopped") | {"status": "stopped"}
    results["peers"] = [{**peer, "iterations": 200} for peer in results["peers"]]
    write(tmp_path, results)
    rows = {row[0]: row for row in tables(report_of(tmp_path, scored=False), "runs")["The runs"].rows}
    assert rows["p2pft"][1:4] == ["stopped", "4", "200 of 300"]
    outcomes = list(csv.DictReader(outcomes_csv(find_runs([tmp_path])).splitlines()))
    assert {row["iterations"] for row in outcomes} == {"200"}


def test_the_first_lines_say_that_a_run_which_was_stopped_had_lost_a_peer(tmp_path):
    write(tmp_path, made_up(views=[LOST], ended=(0, 1, 3), error="p2pft stop") | {"status": "stopped"})
    word = report_of(tmp_path, scored=False).answers[3].word
    assert word == "It was stopped, 1 peer lost on the way (p2pft)"


def test_bytes_along_edges_are_those_of_the_sender_and_unknown_once_views_changed(compared, tmp_path):
    write(tmp_path, made_up())
    edges = tables(report_of(tmp_path, scored=False), "cost")["p2pft: bytes along each edge"]
    assert edges.rows[0] == ["peer 0 → peer 1", "1.0 MB", "1"]
    cost = next(section for section in compared.sections if section.key == "cost")
    assert not any("edge" in table.title for table in cost.tables)
    assert any("along each edge are not known: the view changed" in note for note in cost.notes)


def test_accuracy_by_class_and_confusion_are_counted_from_the_answers(tmp_path):
    write(tmp_path, made_up(accuracy=(0.9, 0.9), unseen=(0.8, 0.9)))
    (run,) = find_runs([tmp_path])
    labels = np.repeat(np.arange(4), 10)
    wrong = np.where((labels == 3) & (np.arange(40) < 34), 2, labels)
    answers = [Answers(0, run.classes, labels, wrong), Answers(1, run.classes, labels, labels)]
    report = build(Material([run], {"p2pft": answers}), ())
    found = tables(report, "classes")
    (by_class,) = (table for title, table in found.items() if title.startswith("Accuracy by class"))
    assert by_class.header == ["class", "p2pft: peers that hold it", "p2pft: peers that never saw it"]
    assert by_class.rows[3] == ["class 3", "1.000", "0.600"]
    mistakes = found["p2pft: the most frequent mistakes"]
    assert mistakes.rows == [["class 3 taken for class 2", "4", "20.0%"]]


def test_where_every_answer_is_right_no_class_is_called_hardest_and_no_table_is_empty(tmp_path):
    write(tmp_path, made_up())
    (run,) = find_runs([tmp_path])
    classes = [f"class {c}" for c in range(8)]
    right = [Answers(p, classes, np.arange(8), np.arange(8)) for p in range(4)]
    report = build(Material([run], {run.label: right}, {}), ())
    section = next(section for section in report.sections if section.key == "classes")
    assert section.sentences == ["p2pft: every peer names every image of every class right."]
    assert all(table.rows for table in section.tables)


def test_of_two_runs_with_the_same_accuracy_none_is_called_the_best(tmp_path):
    write(tmp_path / "p2pft", made_up())
    write(tmp_path / "fedavg", made_up("fedavg"))
    report = report_of(tmp_path, scored=False)
    section = next(section for section in report.sections if section.key == "runs")
    assert section.sentences[0] == "2 runs: p2pft and fedavg end with a mean accuracy of 0.950."


def test_of_pooled_images_alone_the_page_does_not_tell_of_an_exchange(tmp_path):
    write(tmp_path, made_up("centralized", accuracy=(0.96,), unseen=(None,)))
    report = report_of(tmp_path, scored=False)
    text = as_markdown(report)
    assert "centralized trains one model on the images of all peers; nothing is exchanged." in text
    assert "exchange along" not in text
    assert "there is no centralized run" not in text
    assert report.answers[2].sentences


def test_a_report_of_features_speaks_of_samples_and_one_with_a_run_of_images_beside_it_too(tmp_path):
    features = {"dataset": "features:/features.npz", "keep": "best:loss"}
    write(tmp_path / "p2pft", made_up(**features), validation=lambda p, k: 1.0)
    write(tmp_path / "local", made_up("local", accuracy=(0.25,) * 4, unseen=(0.0,) * 4, **features))
    write(tmp_path / "pooled", made_up("centralized", accuracy=(0.96,), unseen=(None,), **features))
    told = as_markdown(report_of(tmp_path))
    assert "image" not in told.lower()
    assert "Each peer holds samples of 2 of the 8 classes, 100 to 103 samples" in told
    write(tmp_path / "more", made_up(seed=1))
    of_all = next(one for one in report_of(tmp_path).sections if one.key == "runs")
    assert "right answers to the test samples of all classes" in of_all.notes[0]


def test_a_run_whose_tails_cannot_be_scored_is_left_out_by_name(tmp_path):
    write(tmp_path, made_up())
    runs = find_runs([tmp_path])
    report = build(Material(runs, {}, {"p2pft": "there is no folder of pets"}), ())
    section = next(section for section in report.sections if section.key == "classes")
    assert section.sentences == ["Not known: p2pft is left out here: there is no folder of pets."]
    assert not section.tables
    assert "there is no folder of pets" in as_html(report)


EVIL = '<script>alert("x")</script>'


def test_names_of_classes_sites_and_errors_are_text_wherever_they_stand(tmp_path):
    classes = [EVIL, "a|b", "$x^2$", "ü & co", "line\nend", "\x00", "#1", "`code`"]
    names = [EVIL, "south|west", "n\u202eorth", '"quoted" onload=x']
    lost = LOST | {"why": {"2": EVIL}}
    results = made_up(classes=classes, names=names, views=[lost], ended=(0, 1, 3), error=EVIL)
    write(tmp_path, results)
    runs = find_runs([tmp_path])
    report = build(Material(runs, answers_of(runs, runs[0].classes), {"p2pft": EVIL}), ())
    html, markdown = as_html(report), as_markdown(report)
    read = Page(html)
    assert not read.all("script")
    assert not any(name.startswith("on") for _, attributes in read.elements for name in attributes)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "\x00" not in html
    assert "\u202e" not in html
    assert "<script" not in markdown.replace("\\<script", "")
    (weights,) = (line for line in markdown.splitlines() if line.startswith("| receiver"))
    assert weights.replace("\\|", "").count("|") == 6


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    many = {"accuracy": np.linspace(0.9, 0.95, 64).tolist(), "unseen": np.linspace(0.88, 0.94, 64).tolist()}
    for method in ("p2pft", "dgd", "fedavg", "local"):
        write(folder / method, made_up(method, **many))
    classes = [f"class {c}" for c in range(128)]
    pooled = made_up("centralized", accuracy=(0.96,), unseen=(None,), sent=0, classes=classes)
    write(folder / "centralized", pooled)
    return report_of(folder)


def test_the_page_of_64_peers_and_five_methods_is_below_3_mb(large):
    assert 100_000 < len(as_html(large).encode()) < 3_000_000


def test_64_peers_are_a_band_and_not_64_lines(large):
    charts = {chart.key: chart for section in large.sections for chart in section.charts}
    assert not any(key.startswith("peers-") for key in charts)
    lines = re.findall(r'id="methods-line2d_\d+"', charts["methods"].svg)
    assert "PolyCollection" in charts["methods"].svg
    assert len(lines) < 100
    assert any("a band from the worst to the best" in note for s in large.sections for note in s.notes)


def test_a_graph_of_very_many_edges_is_shown_as_its_matrix(tmp_path):
    from p2pft_flower.report.page.charts import graph_chart
    from p2pft_flower.topology import Graph

    chart = graph_chart("graph", "Graph", "words", Graph.load("complete:40"))
    assert "<image" in chart.svg
    assert len(chart.svg) < 100_000
    assert "<image" not in graph_chart("graph", "Graph", "words", Graph.load("ring:8")).svg


def test_markdown_has_the_same_sentences_and_numbers(compared):
    markdown = as_markdown(compared)
    assert "p2pft: all 4 peers learned the classes they never saw" in markdown
    assert "| p2pft | completed | 4 | 300 | 0.950 |" in markdown
    assert markdown.startswith("# p2pft, fedavg, centralized and local on directed-ring:4\n")


def test_a_figure_of_attention_stands_in_the_page_with_its_words(tmp_path):
    from PIL import Image

    write(tmp_path, made_up())
    Image.new("RGB", (2000, 900), "navy").save(tmp_path / "map.png")
    numbers = """{"schema": "p2pft.attention/1",
        "title": "Attention maps: vit on digits", "subtitle": "Mean of heads",
        "methods": [{"algorithm": "p2pft", "peers": [], "all": {
            "seen": {"images": 3, "accuracy": 0.9, "correlation": {"mean": 0.8, "std": 0.1}},
            "unseen": {"images": 3, "accuracy": 0.8, "correlation": {"mean": 0.7, "std": 0.1}}}}]}"""
    (tmp_path / "map.json").write_text(numbers)
    (tmp_path / "lost.json").write_text(numbers)
    figures = find_attention([tmp_path, tmp_path])
    report = report_of(tmp_path, scored=False, figures=figures)
    read = Page(as_html(report))
    (image,) = read.all("img")
    assert image["alt"] == "Attention maps: vit on digits. Mean of heads"
    assert image["src"].startswith("data:image/webp;base64,")
    section = next(section for section in report.sections if section.key == "attention")
    assert "the maps of p2pft are most like the centralised ones (r = 0.70)" in section.sentences[0]
    assert section.notes == ["lost.json: no picture lies beside lost.json."]


def test_a_damaged_figure_of_attention_is_named(tmp_path):
    write(tmp_path, made_up())
    (tmp_path / "map.json").write_text('{"schema": "p2pft.attention/1", "title": 7}')
    (tmp_path / "cut.json").write_text('{"schema": "p2pft.attention/1", "title": "t", "subtitle": "s"}')
    (tmp_path / "cut.png").write_bytes(b"\x89PNG no picture")
    names = {figure.name: figure.missing for figure in find_attention([tmp_path])}
    assert "cut.png cannot be read" in names["cut.json"]
    assert "map.json: Expected `str`" in names["map.json"]


PAPER = {"dataset": "cifar10", "model": "vit_small_patch16_224", "tune": "last-block", "epochs": 100}


def test_the_papers_tables_stand_beside_a_run_of_its_setting_with_all_that_differs(tmp_path):
    results = made_up(classes=[str(c) for c in range(10)], **PAPER)
    groups = [range(2), range(2, 4), range(4, 7), range(7, 10)]
    for peer, group in zip(results["peers"], groups, strict=True):
        peer["classes"] = [str(c) for c in group]
    write(tmp_path, results | {"partition": "classes:0-1,2-3,4-6,7-9"})
    report = report_of(tmp_path, scored=False)
    section = next(section for section in report.sections if section.key == "paper")
    assert section.sentences == [
        "The peers' classes of CIFAR-10 are those of the paper's Table 1.",
        "p2pft: a mean accuracy of 95.00 %, 2.44 points below the 97.44 % of the paper's Table 2.",
    ]
    split, beside = section.tables
    assert split.rows[2] == ["node 3", "4-6", "4-6"]
    assert beside.rows[0] == ["node 1", "97.44", "95.00"]
    assert any("training images" in note for note in section.notes)
    assert any("could not be counted here" in note for note in section.notes)


def test_runs_of_other_data_have_no_paper_to_stand_beside(compared):
    section = next(section for section in compared.sections if section.key == "paper")
    assert section.sentences[0].startswith("No run here is of one of the paper's datasets (Pets, Flowers,")
    assert not section.tables


def test_runs_that_all_failed_make_a_page_that_says_why(tmp_path):
    from p2pft_flower.report.results import write_results

    failed = {"schema": "p2pft.results/1", "status": "failed", "algorithm": "gt-dgd", "error": "no balance"}
    write_results(tmp_path, failed)
    report = report_of(tmp_path, scored=False)
    assert [answer.word for answer in report.answers][-1] == "It failed (gt-dgd)"
    assert "gt-dgd failed: no balance." in as_html(report)


def test_a_run_that_keeps_its_best_model_has_a_curve_of_each_peers_validation_scores(tmp_path):
    held = {(p, k): 1.0 + p - k / 2000 for p in range(4) for k in range(0, 2001, 100)}
    write(tmp_path / "a", made_up(keep="best:loss"), validation=lambda p, k: held[p, k])
    write(tmp_path / "b", made_up(seed=1))
    kept, plain = (find_runs([tmp_path / name])[0] for name in "ab")
    assert kept.validation[3] == {k: held[3, k] for k in kept.times[3]}
    assert plain.validation == {}
    for run, there in ((kept, True), (plain, False)):
        page = Page(as_html(build(Material([run], answers_of([run], run.classes)), ())))
        assert any("loss, validation images" in words for words in page.words["text"]) is there
