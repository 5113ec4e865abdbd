"""The reports that the course grew from, and how a claim names the place in one.

A sentence is quoted where a report states it in the sense that is measured. Where a report asks and does not answer,
says only what it did, or leaves out what matters, the sentence is our own, and its source says why we ask.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    name: str  # in a table
    citation: str


ZHAO = Report("Zhao", "Zhao, VQ-VAE and Transformer")
IBRAHIM = Report("Ibrahim", "Ibrahim, Residual Vector Quantization based VAE")
YESILTEPE = Report("Yesiltepe", "Yesiltepe, Neural Discrete Representation Learning")
GRADIENT_FLOW = Report("gradient flow", "the report on the gradient flow of a VQ-VAE")  # its author is not named
BACKBONES = Report("backbones", "the report on backbones of a VQ-VAE")  # nor is this one's


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a claim comes from; as text, what stands in brackets after its sentence.

    Args:
        report: whose words the sentence is; None: it is our question.
        section: where in the report.
        reason: of a question of ours, what in the reports raises it.
        changed: when the comparison was added or changed, if that was after a first run.
    """

    report: Report | None = None
    section: str = ""
    reason: str = ""
    changed: str = ""

    @property
    def name(self) -> str:
        """Whose words the sentence is, in a word; empty where they are ours."""
        return self.report.name if self.report else ""

    def __str__(self) -> str:
        if self.report:
            text = self.report.citation + (f", {self.section}" if self.section else "")
        else:
            text = "our question" + (f": {self.reason}" if self.reason else "")
        separator = "; " if self.report or self.reason else ", "
        return text + (f"{separator}{self.changed}" if self.changed else "")


OUR_QUESTION = Source()
