"""One chapter open in JupyterLab, driven by the menu, the editor and the toolbar."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect

ROOT = Path(__file__).parents[2]
PATIENCE = 240_000  # milliseconds for a whole chapter on a busy machine; nothing is asserted about time


@dataclass(frozen=True)
class Lab:
    """A running server: what it printed, base and token of that, the folder that it shows, that of user settings."""

    address: str
    url: str
    token: str
    folder: Path
    settings: Path


@contextmanager
def opened(browser: Browser, lab: Lab, chapter: str, *, printed: bool = False) -> "Iterator[Notebook]":
    """A chapter in a window of its own."""
    with browser.new_context(viewport={"width": 1300, "height": 1000}) as context:
        context.set_default_timeout(60_000)
        yield Notebook(context.new_page(), lab, chapter, printed=printed)


class Notebook:
    """The page with the learner's copy of one chapter, freshly laid; at the printed address, or at its own."""

    def __init__(self, page: Page, lab: Lab, chapter: str, *, printed: bool = False) -> None:
        self.page, self.chapter = page, chapter
        shutil.copy(ROOT / "chapters" / f"{chapter}.ipynb", lab.folder / "my")
        page.goto(lab.address if printed else f"{lab.url}/lab/tree/my/{chapter}.ipynb?reset&token={lab.token}")
        self.panel = page.locator(".jp-NotebookPanel:visible")
        self.code_cells = self.panel.locator(".jp-CodeCell")
        self.idle = page.get_by_text("Python 3 (ipykernel) | Idle")  # in the status bar
        expect(self.idle).to_be_visible(timeout=60_000)  # before there is a kernel, "restart" starts one unasked
        self.folded = self.panel.locator(".jp-CodeCell .jp-InputPlaceholder").count()  # of cells that only plot
        page.get_by_role("menuitem", name="View", exact=True).click()
        page.get_by_role("menuitem", name="Expand All Code").click()

    def cell(self, text: str) -> Locator:
        """The code cell whose source holds ``text``."""
        return self.code_cells.filter(has=self.page.locator(".jp-InputArea", has_text=text))

    def output(self, text: str) -> Locator:
        """What stands below the code cell whose source holds ``text``."""
        return self.cell(text).locator(".jp-OutputArea")

    def paste(self, text: str, source: str) -> None:
        """Replace the source of the cell that holds ``text`` as a reader does: click, select all, paste."""
        self.cell(text).locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.insert_text(source)

    def start_all(self) -> None:
        """Kernel → Restart Kernel and Run All Cells… → Restart."""
        self.page.get_by_role("menuitem", name="Kernel", exact=True).click()
        self.page.get_by_role("menuitem", name=re.compile("Restart Kernel and Run All Cells")).click()
        self.page.locator(".jp-Dialog").get_by_role("button", name="Confirm Kernel Restart").click()
        expect(self.code_cells.last.locator(".jp-InputPrompt")).to_have_text("[*]:")

    def wait(self) -> None:
        """Until no cell is waiting or running."""
        waiting = self.code_cells.locator(".jp-InputPrompt").filter(has_text="*")
        expect(waiting).to_have_count(0, timeout=PATIENCE)
        expect(self.idle).to_be_visible()

    def run_all(self) -> None:
        self.start_all()
        self.wait()

    def interrupt(self) -> None:
        """The toolbar's stop button."""
        self.panel.locator('[data-jp-item-name="interrupt"]').click()

    def save(self) -> None:
        """File → Save Notebook."""
        self.page.get_by_role("menuitem", name="File", exact=True).click()
        self.page.get_by_role("menuitem", name=re.compile("^Save Notebook(?! As)")).first.click()
        expect(self.page.locator("#jp-main-dock-panel .lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)

    def verdicts(self, names: list[str]) -> list[str]:
        """The first words that the check of each exercise says."""
        return [self.output(f"check({name})").inner_text().partition(".")[0].strip() for name in names]

    def errors(self) -> list[str]:
        return self.panel.locator(
            ".jp-OutputArea-output", has_text="Traceback (most recent call last)"
        ).all_inner_texts()

    def prompts(self) -> list[str]:
        """``[1]:`` and so on, of each code cell."""
        return [prompt.strip() for prompt in self.code_cells.locator(".jp-InputPrompt").all_inner_texts()]

    def picture(self, name: str) -> None:
        """A screenshot of the whole chapter, where COMPANION_SCREENSHOTS names a folder for it."""
        folder = os.environ.get("COMPANION_SCREENSHOTS")
        if folder:
            self.panel.locator(".jp-Cell").first.click()  # JupyterLab scrolls to the selected cell again and again
            height = self.panel.locator(".jp-WindowedPanel-outer").evaluate("outer => outer.scrollHeight")
            self.page.set_viewport_size({"width": 1300, "height": min(int(height) + 200, 16_000)})
            self.page.screenshot(path=Path(folder, f"{self.chapter}-{name}.png"))
            self.page.set_viewport_size({"width": 1300, "height": 1000})
