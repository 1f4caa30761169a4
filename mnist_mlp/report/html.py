"""The results page as HTML: one file, with its style and figures in it."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from mnist_mlp.report.markdown import anchor

VERDICTS = {"holds": "holds", "does not hold": "not", "undecided": "open"}  # and their classes in report.css


def to_html(markdown: str, title: str, figures: Mapping[str, bytes]) -> str:
    """The Markdown as a page that needs nothing but itself: figures are in it, and nothing is executed.

    Args:
        markdown: without HTML: what looks like it is shown as it is.
        title: of the page.
        figures: the content of every figure that the Markdown names.
    """
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=PageRenderer).enable("table")
    parser.core.ruler.push("captions", join_captions)
    style = (Path(__file__).parent / "report.css").read_text()
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{parser.render(markdown, {'figures': figures})}</main>\n</body>\n</html>\n"
    )


def join_captions(state: StateCore) -> None:
    """Makes a figure of each paragraph that is an image and the paragraph in italics after it, its caption."""
    tokens = state.tokens
    joined: list[Token] = []
    place = 0
    while place < len(tokens):
        opened, image, _, _, caption, closed = (tokens[place : place + 6] + 6 * [Token("", "", 0)])[:6]
        if [child.type for child in image.children or []] == ["image"] and _is_emphasis(caption):
            opened.tag = closed.tag = "figure"
            caption.children = (caption.children or [])[1:-1]
            caption_opened = Token("figcaption_open", "figcaption", 1)
            joined += [opened, image, caption_opened, caption, Token("figcaption_close", "figcaption", -1), closed]
            place += 6
        else:
            joined.append(opened)
            place += 1
    state.tokens = joined


def _is_emphasis(paragraph: Token) -> bool:
    kinds = [child.type for child in paragraph.children or []]
    return kinds[:1] == ["em_open"] and kinds[-1:] == ["em_close"]


class PageRenderer(RendererHTML):
    """What the page has beyond markdown-it-py's own HTML. A method renders the tokens of its name."""

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """An image, its content in its address."""
        content = env["figures"][tokens[idx].attrs["src"]]
        tokens[idx].attrSet("src", f"data:image/svg+xml;base64,{b64encode(content).decode()}")
        return super().image(tokens, idx, options, env)

    def heading_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A heading below the title, with a name for links."""
        if tokens[idx].tag != "h1":
            tokens[idx].attrSet("id", anchor(self.renderInlineAsText(tokens[idx + 1].children, options, env)))
        return self.renderToken(tokens, idx, options, env)

    def table_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A wide table scrolls in a box of its own, which a keyboard can reach."""
        return '<div class="scroll" role="region" aria-label="table" tabindex="0"><table>\n'

    def table_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A cell that heads nothing is no heading."""
        if not tokens[idx + 1].content:
            tokens[idx].tag = tokens[idx + 2].tag = "td"
        return self.renderToken(tokens, idx, options, env)

    def strong_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A verdict has a colour."""
        if kind := VERDICTS.get(tokens[idx + 1].content):
            tokens[idx].attrSet("class", kind)
        return self.renderToken(tokens, idx, options, env)
