"""The results page as HTML: one file, with its style and figures in it."""

import re
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

# Verdicts, and their classes in report.css.
VERDICTS = {
    "holds": "holds",
    "holds in repetition only": "part",
    "depends on the seed": "part",
    "holds for the report's run only": "part",
    "does not hold": "not",
    "undecided": "open",
    "cannot be tested": "open",
}


def to_html(markdown: str, title: str, figures: Mapping[str, bytes]) -> str:
    """The Markdown as a page that needs nothing but itself: figures are in it, and nothing is executed.

    Args:
        markdown: without HTML but for the lines of `markdown.folded`: what else looks like it is shown as it is.
        title: of the page.
        figures: the content of every figure that the Markdown names.
    """
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=PageRenderer).enable("table")
    parser.core.ruler.push("folds", open_folds)
    parser.core.ruler.push("captions", join_captions)
    style = (Path(__file__).parent / "report.css").read_text("utf-8")
    tokens = parser.parse(markdown)
    body = parser.renderer.render(tokens, parser.options, {"figures": figures})
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{contents(tokens)}<main>\n{body}</main>\n</body>\n</html>\n"
    )


def contents(tokens: Sequence[Token]) -> str:
    """A list of the page's sections, which stays in sight."""
    headings = [
        tokens[place + 1] for place, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"
    ]
    links = [(anchor(heading.content), heading.content.replace("\\", "")) for heading in headings]
    items = "".join(f'<li><a href="#{escape(name)}">{escape(text)}</a></li>\n' for name, text in links)
    return f'<nav aria-label="contents">\n<ul>\n<li><a href="#top">Top</a></li>\n{items}</ul>\n</nav>\n'


def open_folds(state: StateCore) -> None:
    """Makes of the two lines that `markdown.folded` writes what they say."""
    for place, token in enumerate(state.tokens):
        opened = (
            re.fullmatch(r"<details><summary>([^<>]*)</summary>", token.content) if token.type == "inline" else None
        )
        if opened or (token.type == "inline" and token.content == "</details>"):
            around = state.tokens[place - 1], state.tokens[place + 1]
            for paragraph in around:
                paragraph.hidden = True
            text = f"<details><summary>{escape(opened[1], quote=False)}</summary>\n" if opened else "</details>\n"
            state.tokens[place] = Token("html_block", "", 0, content=text)


def join_captions(state: StateCore) -> None:
    """Makes a figure of each paragraph that is an image and the paragraph in italics after it, its caption; and of
    several figures in a row a gallery."""
    tokens = [*state.tokens, *6 * [Token("", "", 0)]]
    joined: list[Token] = []
    row: list[Token] = []
    place = 0
    while place < len(state.tokens):
        opened, image, _, _, caption, closed = tokens[place : place + 6]
        if [child.type for child in image.children or []] == ["image"] and _is_emphasis(caption):
            opened.tag = closed.tag = "figure"
            source = str((image.children or [image])[0].attrs["src"])
            opened.attrSet("id", Path(source).stem)
            caption.children = (caption.children or [])[1:-1]
            caption_opened = Token("figcaption_open", "figcaption", 1)
            row += [opened, image, caption_opened, caption, Token("figcaption_close", "figcaption", -1), closed]
            place += 6
        else:
            joined += [*_as_gallery(row), opened]
            row = []
            place += 1
    state.tokens = joined + _as_gallery(row)


def _as_gallery(figures: list[Token]) -> list[Token]:
    if len(figures) <= 6:
        return figures
    return [
        Token("html_block", "", 0, content='<div class="gallery">\n'),
        *figures,
        Token("html_block", "", 0, content="</div>\n"),
    ]


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

    def link_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A link to a figure's file goes to the figure on this page."""
        target = str(tokens[idx].attrs["href"])
        if target in env["figures"]:
            tokens[idx].attrSet("href", f"#{Path(target).stem}")
        return self.renderToken(tokens, idx, options, env)

    def heading_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A heading, with a name for links."""
        name = (
            "top"
            if tokens[idx].tag == "h1"
            else anchor(self.renderInlineAsText(tokens[idx + 1].children, options, env))
        )
        tokens[idx].attrSet("id", name)
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

    def td_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A cell of numbers does not break; one of many words is given room."""
        content = tokens[idx + 1].content
        if (
            len(content) < 8
            or (" × " in content and len(content) < 40)
            or re.fullmatch(r"[\d.,±−+ ()<%*to]*(points|points\))?", content)
        ):
            tokens[idx].attrJoin("class", "number")
        elif len(content) > 40:
            tokens[idx].attrJoin("class", "words")
        return self.renderToken(tokens, idx, options, env)

    def text(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """Text whose numbers do not break at ± or before %."""
        return escape(re.sub(r" (?=[±%])|(?<=±) |(?<=n) (?== \d)|(?<=n =) (?=\d)", "\u00a0", tokens[idx].content))

    def strong_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A verdict has a colour."""
        if kind := VERDICTS.get(tokens[idx + 1].content):
            tokens[idx].attrSet("class", kind)
        return self.renderToken(tokens, idx, options, env)
