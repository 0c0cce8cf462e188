"""Runs the Python examples of a page of Markdown, and compares what it says of them with what they do."""

import ast
import io
import re
import tokenize
from contextlib import redirect_stdout
from dataclasses import dataclass
from types import CodeType
from typing import Any

ANYTHING = "…"


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: the word behind the fence, "" without one.
        text: what stands between the fences.
        line: of the page, of the first line of the text.
        follows: whether nothing stands between it and the block before.
    """

    language: str
    text: str
    line: int
    follows: bool


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page.

    Args:
        page: Markdown.

    Raises:
        AssertionError: a fence is indented, or has no end.
    """
    found: list[Block] = []
    language: str | None = None
    begin, follows, lines = 0, False, list[str]()
    for number, line in enumerate(page.splitlines(), 1):
        fence = re.fullmatch(r"```(\w*)", line)
        assert fence or "```" not in line, f"line {number}: a fence is a line of its own"
        if language is None and fence:
            language, begin, lines = fence[1], number + 1, []
        elif language is not None and line == "```":
            found.append(Block(language, "\n".join(lines), begin, follows))
            language, follows = None, True
        elif language is not None:
            lines.append(line)
        elif line.strip():
            follows = False
    assert language is None, f"line {begin - 1}: the block has no end"
    return found


def says(expected: str, found: str) -> bool:
    """Whether a page says what was found; "…" stands for anything within a line."""
    pattern = "[^\n]*".join(re.escape(part) for part in expected.split(ANYTHING))
    return expected.strip(f"{ANYTHING} ") != "" and re.fullmatch(pattern, found) is not None


def run_examples(page: str, name: str = "page") -> dict[str, Any]:
    """Runs the blocks of Python in order, in one namespace.

    A comment behind an expression is its repr, or the error that it raises; the block of text behind an
    example is what it prints.

    Args:
        page: Markdown.
        name: of the page, for messages.

    Returns:
        The namespace.

    Raises:
        AssertionError: what a page says is not so, or a comment stands where it is not compared.
    """
    names: dict[str, Any] = {"__name__": "guide"}
    found = blocks(page)
    for index, block in enumerate(found):
        if block.language != "python":
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):
            _run(block, names, name)
        following = found[index + 1 : index + 2]
        shown = "".join(each.text for each in following if each.language == "text" and each.follows)
        given = printed.getvalue().rstrip("\n")
        assert shown == given or says(shown, given), (
            f"{name}, line {block.line}: prints\n{given}\nand the page says\n{shown}"
        )
    return names


def _run(block: Block, names: dict[str, Any], name: str) -> None:
    comments = _comments(block.text)
    tree = ast.parse(block.text, name)
    for statement in tree.body:
        is_compared = isinstance(statement, ast.Expr)
        comment = comments.pop(statement.end_lineno or 0, None) if is_compared else None
        ast.increment_lineno(statement, block.line - 1)
        where = f"{name}, line {statement.end_lineno}"
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), name, "exec"), names)
            continue
        code = compile(ast.Expression(statement.value), name, "eval")
        if comment is None:
            eval(code, names)
            continue
        value = _value(code, names)
        assert says(comment, value), f"{where}: is\n{value}\nand the page says\n{comment}"
    assert not comments, f"{name}, line {block.line}: no expression stands before {list(comments.values())}"


def _value(code: CodeType, names: dict[str, Any]) -> str:
    """The repr of an expression's value, or the error."""
    try:
        return repr(eval(code, names))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _comments(code: str) -> dict[int, str]:
    """What stands in comments behind code, by line."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
            found[token.start[0]] = token.string.removeprefix("#").strip()
    return found
