"""The chapters in JupyterLab in a real browser, as somebody meets them for the first time."""

import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from lab_driver import PATIENCE, ROOT, Lab, Notebook, opened
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.browser

CHAPTERS = sorted(path.stem for path in Path(ROOT, "chapters").glob("*.ipynb"))
STUB = "raise NotImplementedError"
NEWS = "Would you like to get notified about official Jupyter news?"
STOPPED = "going on with what was trained so far"

# What to write in place of the stub, and what the check answers; any other exercise gets the last line.
WRONG = {
    "mse": ("return (x_hat - x).square().sum()", "Hint: this is the sum over all pixels"),
    "conv_output_size": ("return size // stride", "Hint: size // stride is right only where"),
    "Encoder": (
        "return self.to_latent(self.conv2(self.conv1(x).relu()).flatten(1))",
        "Hint: there is no ReLU after the second convolution",
    ),
    "train_step": ("return model(x).los", "AttributeError"),
    "interpolate": ("pass", "Hint: is there a return at the end?"),
}
RAISES = ("return 1 / 0", "ZeroDivisionError: division by zero")


def cells(notebook: str) -> list[str]:
    """The source of each code cell of a committed notebook."""
    return [c.source for c in nbformat.read(ROOT / notebook, as_version=4).cells if c.cell_type == "code"]


def exercises(notebook: str) -> dict[str, str]:
    """The cell of each exercise, by its name."""
    return {found[1]: cell for cell in cells(notebook) if (found := re.search(r"= check\((\w+)\)", cell))}


@pytest.fixture(scope="module", params=CHAPTERS)
def untouched(request: pytest.FixtureRequest, browser: Browser, lab: Lab) -> Iterator[Notebook]:
    """A chapter run from top to bottom just as it comes."""
    with opened(browser, lab, request.param) as notebook:
        assert notebook.page.locator(".jp-Dialog").count() == 0
        notebook.run_all()
        notebook.picture("untouched")
        yield notebook


@pytest.fixture
def asking_about_news(lab: Lab) -> Iterator[None]:
    """JupyterLab as it comes, without the course's answer to its question."""
    setting = lab.settings / "apputils-extension" / "notification.jupyterlab-settings"
    setting.parent.mkdir(parents=True)
    setting.write_text('{"fetchNews": "none"}', encoding="utf-8")
    yield
    setting.unlink()


def test_without_the_token_nobody_gets_in(lab: Lab) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{lab.url}/api/contents")
    assert refused.value.code == 403
    with urllib.request.urlopen(f"{lab.url}/api/contents?token={lab.token}") as answer:
        assert answer.status == 200


def test_the_printed_address_opens_chapter_00_in_my_and_saving_leaves_git_clean(browser: Browser, lab: Lab) -> None:
    copy = lab.folder / "my" / f"{CHAPTERS[0]}.ipynb"
    with opened(browser, lab, CHAPTERS[0], printed=True) as notebook:
        tabs = notebook.page.locator("#jp-main-dock-panel .lm-TabBar-tabLabel")
        assert tabs.all_inner_texts() == [copy.name]  # and no Launcher
        pictures = notebook.panel.locator(".jp-MarkdownCell img")
        assert pictures.count() > 0
        assert pictures.evaluate_all("all => all.filter(img => !img.complete || img.naturalWidth === 0).length") == 0
        notebook.run_all()
        before = copy.read_bytes()
        notebook.save()
        assert copy.read_bytes() != before
    status = ["git", "status", "--porcelain"]
    assert subprocess.run(status, cwd=lab.folder, capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.usefixtures("asking_about_news")
def test_the_question_about_news_would_be_seen(browser: Browser, lab: Lab) -> None:
    """The proof that the test below looks for what a JupyterLab without the course's setting shows by then."""
    with opened(browser, lab, CHAPTERS[0]) as notebook:
        notebook.run_all()
        assert notebook.page.get_by_text(NEWS).is_visible()


def test_an_error_would_be_seen(browser: Browser, lab: Lab) -> None:
    with opened(browser, lab, CHAPTERS[0]) as notebook:
        notebook.paste("check(mse)", "1 / 0")
        notebook.run_all()
        (error,) = notebook.errors()
        assert "ZeroDivisionError: division by zero" in error


def test_nothing_but_the_chapter_asks_for_attention(untouched: Notebook) -> None:
    assert untouched.page.get_by_text(NEWS).count() == 0
    menus = untouched.page.locator("#jp-MainMenu .lm-MenuBar-itemLabel").all_inner_texts()
    assert menus == ["File", "Edit", "View", "Run", "Kernel", "Tabs", "Settings", "Help"]  # none of nbgrader's
    assert untouched.page.get_by_text("Formgrader").count() == 0


def test_the_code_that_only_plots_is_folded(untouched: Notebook) -> None:
    notebook = json.loads((ROOT / "chapters" / f"{untouched.chapter}.ipynb").read_text(encoding="utf-8"))
    assert untouched.folded == sum("hide-input" in cell["metadata"].get("tags", []) for cell in notebook["cells"])


def test_blanks_unfilled(untouched: Notebook) -> None:
    names = list(exercises(f"chapters/{untouched.chapter}.ipynb"))
    assert_ran_to_the_end(untouched)
    assert untouched.verdicts(names) == [f"⬜ {name}: not attempted yet" for name in names]


def test_every_picture_is_shown_and_has_alt_text(untouched: Notebook) -> None:
    source = "\n".join(cells(f"chapters/{untouched.chapter}.ipynb"))
    drawn = len(re.findall(r"plots\.show\(|explorers\.(?!draw)\w+\(", source))
    assert untouched.output("").locator("img").count() >= drawn > 0
    pictures = untouched.panel.locator("img")  # those in the text as well
    assert [alt for alt in pictures.evaluate_all("all => all.map(img => img.alt)") if len(alt) < 20] == []
    broken = "all => all.filter(img => !img.complete || img.naturalWidth === 0).map(img => img.alt)"
    assert pictures.evaluate_all(broken) == []


def test_the_explorer_follows_each_slider(untouched: Notebook) -> None:
    if untouched.chapter[2].isalpha() and "explorers." not in "\n".join(cells(f"chapters/{untouched.chapter}.ipynb")):
        pytest.skip("a study without an explorer")
    explorer = untouched.output("explorers.").filter(has=untouched.page.locator(".jupyter-widgets")).first
    image, sliders = explorer.locator("img"), explorer.locator("[role=slider]")
    first_words = image.get_attribute("alt")
    assert first_words
    for i in range(sliders.count()):  # in their order: a later one may need an earlier one to be away from zero
        source = image.get_attribute("src")
        assert source
        at_the_end = sliders.nth(i).get_attribute("aria-valuenow") == sliders.nth(i).get_attribute("aria-valuemax")
        sliders.nth(i).focus()
        untouched.page.keyboard.press("Home" if at_the_end else "End")
        expect(image).not_to_have_attribute("src", source)
    expect(image).not_to_have_attribute("alt", first_words)
    untouched.picture("explored")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_solutions_pasted_in(browser: Browser, lab: Lab, chapter: str) -> None:
    answers = exercises(f"solutions/{chapter}.ipynb")
    with opened(browser, lab, chapter) as notebook:
        for name, source in answers.items():
            notebook.paste(f"check({name})", source)
        notebook.run_all()
        assert_ran_to_the_end(notebook)
        said = notebook.verdicts(list(answers))
        assert [words.partition(":")[0] for words in said] == [f"✅ {name} matches" for name in answers]
        notebook.picture("solved")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_wrong_answers_pasted_in(browser: Browser, lab: Lab, chapter: str) -> None:
    blanks = exercises(f"chapters/{chapter}.ipynb")
    with opened(browser, lab, chapter) as notebook:
        for name, source in blanks.items():
            notebook.paste(f"check({name})", source.replace(STUB, WRONG.get(name, RAISES)[0]))
        notebook.run_all()
        assert_ran_to_the_end(notebook)
        for name in blanks:
            expect(notebook.output(f"check({name})")).to_contain_text(f"❌ {name} differs on input")
            expect(notebook.output(f"check({name})")).to_contain_text(WRONG.get(name, RAISES)[1])
        notebook.picture("wrong")


def test_the_stop_button_goes_on_with_what_was_trained(browser: Browser, lab: Lab) -> None:
    """Both in the loop that chapter 01 writes out and in ``companion.fit``, which it calls twice in one cell."""
    chapter = "01_autoencoder"
    with opened(browser, lab, chapter) as notebook:
        for text, endless in (
            ("range(settings.epochs_plane)", "range(1_000_000)"),
            ("epochs=settings.epochs,", "epochs=1_000_000,"),
        ):
            (source,) = (cell for cell in cells(f"chapters/{chapter}.ipynb") if text in cell)
            notebook.paste(text, source.replace(text, endless))
        notebook.start_all()

        loop, fit = notebook.output("range(1_000_000)"), notebook.output("epochs=1_000_000")
        for name, output, times in (("loop", loop, 1), ("fit", fit, 1), ("fit-again", fit, 2)):
            expect(output).to_contain_text(repeated(r"\b[1-9]\d*/\d{7}", times), timeout=PATIENCE)  # the bar moves
            notebook.picture(f"training-{name}")
            notebook.interrupt()
            expect(output).to_contain_text(repeated(STOPPED, times))
        notebook.wait()
        assert_ran_to_the_end(notebook)
        notebook.picture("stopped")


def repeated(words: str, times: int) -> re.Pattern[str]:
    return re.compile(f"({words}.*){{{times}}}", re.DOTALL)


def assert_ran_to_the_end(notebook: Notebook) -> None:
    assert notebook.errors() == []
    assert notebook.prompts() == [f"[{n + 1}]:" for n in range(notebook.code_cells.count())]
