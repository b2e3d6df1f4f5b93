"""The commands of the dashboard that belong to no view. Keys, palette, help and footer are made from these tables."""

from __future__ import annotations

from dataclasses import dataclass

NEEDS_CONTROL = "read-only: on a live run, `rltop --control` switches flags and acts on engines"


@dataclass(frozen=True)
class KeyCommand:
    """One command. The dashboard, its state or a view executes it by id.

    Attributes:
        id: its name, with underscores.
        keys: Textual key names, the primary one first.
        shown: the keys as printed.
        title: two or three words.
        help: one line, what it does.
        group: heading in the help.
        needs_control: changes the run; greyed with the reason unless the dashboard has control.
        footer: word in the footer; empty keeps it out.
        view: the view that has the command, whose footer shows it first; empty for commands of all views.
    """

    id: str
    keys: tuple[str, ...]
    shown: str
    title: str
    help: str
    group: str
    needs_control: bool = False
    footer: str = ""
    view: str = ""


APPLICATION: tuple[KeyCommand, ...] = (
    KeyCommand("help", ("question_mark", "f1", "h"), "? F1 h", "Help", "all keys and signs", "Application",
               footer="help"),
    KeyCommand("palette", ("colon", "ctrl+p"), ": ctrl+p", "Commands", "find a command by name", "Application",
               footer="find"),
    KeyCommand("runs", ("R",), "R", "Runs", "show another live run", "Application"),
    KeyCommand("screenshot", ("ctrl+s", "P"), "P ctrl+s", "Screenshot", "save the screen as SVG", "Application"),
)  # fmt: skip

READING: tuple[KeyCommand, ...] = (
    KeyCommand("freeze", ("space",), "space", "Freeze", "freeze the screen; data keep arriving", "Reading",
               footer="freeze"),
    KeyCommand("zoom", ("z",), "z", "Maximise", "show only the focused pane, and back", "Reading"),
    KeyCommand("explain", ("i",), "i", "Explain numbers",
               "value, sample size, unit, formula, source, thresholds, synonyms", "Reading"),
    KeyCommand("closer", ("plus", "equals_sign"), "+ =", "Zoom in", "half the x range, around the cursor", "Reading"),
    KeyCommand("wider", ("minus",), "-", "Zoom out", "twice the x range, up to the whole run", "Reading"),
    KeyCommand("window", ("w",), "w", "Range", "whole run, last 300, 100, 30 steps", "Reading"),
    KeyCommand("x_axis", ("x",), "x", "X axis", "training step, policy version, minutes", "Reading"),
    KeyCommand("y_axis", ("y",), "y", "Y axis", "linear or logarithmic; values up to 0 are drawn at the bottom",
               "Reading"),
    KeyCommand("step_back", ("left_square_bracket",), "[", "Step back", "show every view one step earlier", "Reading"),
    KeyCommand("step_forward", ("right_square_bracket",), "]", "Step forward", "show every view one step later",
               "Reading"),
    KeyCommand("step_back_ten", ("left_curly_bracket",), "{", "Ten steps back", "show every view ten steps earlier",
               "Reading"),
    KeyCommand("step_forward_ten", ("right_curly_bracket",), "}", "Ten steps forward",
               "show every view ten steps later", "Reading"),
    KeyCommand("first", ("home",), "home", "First step", "show every view at the first step", "Reading"),
    KeyCommand("latest", ("end",), "end", "Latest step", "follow the latest step again", "Reading"),
    KeyCommand("go_to", ("number_sign",), "#", "Go to step", "enter a step number; : and the number does the same",
               "Reading"),
    KeyCommand("next_mark", ("n",), "n", "Next mark",
               "go to the next switch, start, loss, update trouble, gap or alarm", "Reading"),
    KeyCommand("previous_mark", ("N",), "N", "Previous mark", "go to the previous one", "Reading"),
    KeyCommand("slower", ("less_than_sign",), "<", "Repaint slower",
               "halve the repaint rate; measuring is not affected", "Reading"),
    KeyCommand("faster", ("greater_than_sign",), ">", "Repaint faster", "double the repaint rate", "Reading"),
)  # fmt: skip

MOVING: tuple[KeyCommand, ...] = (
    KeyCommand("next_pane", ("tab",), "tab", "Next pane", "focus the next plot or table", "Moving"),
    KeyCommand("previous_pane", ("shift+tab",), "shift+tab", "Previous pane", "focus the previous one", "Moving"),
    KeyCommand("down", ("down", "j"), "down j", "Down", "next line of the table", "Moving"),
    KeyCommand("up", ("up", "k"), "up k", "Up", "previous line", "Moving"),
    KeyCommand("page_down", ("pagedown", "ctrl+d"), "pgdn ctrl+d", "Page down", "ten lines down", "Moving"),
    KeyCommand("page_up", ("pageup", "ctrl+u"), "pgup ctrl+u", "Page up", "ten lines up", "Moving"),
    KeyCommand("top", ("g",), "g", "Top", "first line", "Moving"),
    KeyCommand("bottom", ("G",), "G", "Bottom", "last line", "Moving"),
    KeyCommand("filter", ("slash",), "/", "Filter", "show only matching lines of the table: text, regex, lag>2",
               "Moving", footer="filter"),
    KeyCommand("sort", ("s",), "s", "Sort", "sort the table by the next column", "Moving"),
    KeyCommand("sort_reverse", ("S",), "S", "Reverse", "reverse the order of the table", "Moving"),
    KeyCommand("open", ("enter",), "enter", "Open", "details of the line: facts, an effect, the dialog of a switch",
               "Moving"),
    KeyCommand("back", ("escape",), "esc", "Back", "leave the maximised pane, or return to the view before", "Moving"),
)  # fmt: skip

DETACH = KeyCommand("quit", ("q", "ctrl+c"), "q ctrl+c", "Detach", "close the dashboard; the run continues",
                    "Application", footer="detach")  # fmt: skip
