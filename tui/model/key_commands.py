"""Every command of the dashboard, once: keys, palette, help and footer are made from this table."""

from __future__ import annotations

from dataclasses import dataclass

NEEDS_CONTROL = "read-only: on a live run, `rltop --control` switches flags and acts on engines"


@dataclass(frozen=True)
class KeyCommand:
    """One thing a person can ask for. ``RltopApp`` knows how by its id.

    Attributes:
        id: its name, with underscores.
        keys: Textual key names, the usual one first.
        shown: the keys as printed.
        title: two or three words.
        help: one line, what it does.
        group: heading in the help.
        needs_control: changes the run; greyed with the reason unless control was asked for.
        footer: word in the footer; empty keeps it out.
        view: the one view whose footer has it, before the keys of all; empty: all have it.
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


COMMANDS: tuple[KeyCommand, ...] = (
    KeyCommand("help", ("question_mark", "f1", "h"), "? F1 h", "Help", "all keys and signs", "Application", footer="help"),
    KeyCommand("palette", ("colon", "ctrl+p"), ": ctrl+p", "Commands", "find a command by name", "Application",
            footer="find"),
    KeyCommand("overview", ("1", "0"), "1 0", "Overview", "plots, fleet and events", "Views", footer="overview"),
    KeyCommand("mismatch", ("3",), "3", "Mismatch", "where the gap lies, and the tokens and sequences behind it",
            "Views", footer="gap"),
    KeyCommand("diagnosis", ("4",), "4", "Diagnosis", "what is wrong, why that is thought, and what to do", "Views",
            footer="cause"),
    KeyCommand("control", ("6", "F"), "6 F", "Control", "every flag and action on every engine, and what became of each",
            "Views", footer="control"),
    KeyCommand("journal", ("at",), "@", "Log of changes", "go to the log of changes; enter there shows a change's effect",
            "Views"),
    KeyCommand("freeze", ("space",), "space", "Freeze", "hold the picture still; data keep arriving", "Looking",
            footer="freeze"),
    KeyCommand("zoom", ("z",), "z", "Maximise", "the focused pane alone, and back", "Looking"),
    KeyCommand("explain", ("i",), "i", "What is this number", "value, N, unit, formula, source, thresholds, other names",
            "Looking"),
    KeyCommand("closer", ("plus", "equals_sign"), "+ =", "Zoom in", "half the x axis, around the step that is read",
            "Looking"),
    KeyCommand("wider", ("minus",), "-", "Zoom out", "twice the x axis, up to the whole run", "Looking"),
    KeyCommand("window", ("w",), "w", "Time range", "whole run, last 300, 100, 30 steps", "Looking"),
    KeyCommand("x_axis", ("x",), "x", "X axis", "training step, policy version, minutes", "Looking"),
    KeyCommand("y_axis", ("y",), "y", "Y axis", "linear or logarithmic; what is not above 0 stands on the floor",
            "Looking"),
    KeyCommand("step_back", ("left_square_bracket",), "[", "Step back", "read everything one step earlier", "Looking"),
    KeyCommand("step_forward", ("right_square_bracket",), "]", "Step forward", "read everything one step later",
            "Looking"),
    KeyCommand("step_back_ten", ("left_curly_bracket",), "{", "Ten steps back", "read everything ten steps earlier",
            "Looking"),
    KeyCommand("step_forward_ten", ("right_curly_bracket",), "}", "Ten steps forward", "read everything ten steps later",
            "Looking"),
    KeyCommand("first", ("home",), "home", "First step", "read everything at the first step", "Looking"),
    KeyCommand("latest", ("end",), "end", "Latest step", "read everything at the latest step again", "Looking"),
    KeyCommand("go_to", ("number_sign",), "#", "Go to step", "asks for a number; : and the number does the same",
            "Looking"),
    KeyCommand("next_mark", ("n",), "n", "Next mark", "read at the next switch, start, loss, trouble, gap, alarm",
            "Looking"),
    KeyCommand("previous_mark", ("N",), "N", "Mark before", "read at the one before", "Looking"),
    KeyCommand("slower", ("less_than_sign",), "<", "Repaint slower", "halve the rate of repainting, never of measuring",
            "Looking"),
    KeyCommand("faster", ("greater_than_sign",), ">", "Repaint faster", "double the rate of repainting", "Looking"),
    KeyCommand("next_pane", ("tab",), "tab", "Next pane", "focus the next plot or table", "Moving"),
    KeyCommand("previous_pane", ("shift+tab",), "shift+tab", "Previous pane", "focus the one before", "Moving"),
    KeyCommand("down", ("down", "j"), "down j", "Down", "next line of the table", "Moving"),
    KeyCommand("up", ("up", "k"), "up k", "Up", "line before", "Moving"),
    KeyCommand("page_down", ("pagedown", "ctrl+d"), "pgdn ctrl+d", "Page down", "ten lines on", "Moving"),
    KeyCommand("page_up", ("pageup", "ctrl+u"), "pgup ctrl+u", "Page up", "ten lines back", "Moving"),
    KeyCommand("top", ("g",), "g", "Top", "first line", "Moving"),
    KeyCommand("bottom", ("G",), "G", "Bottom", "last line", "Moving"),
    KeyCommand("sort", ("s",), "s", "Sort", "sort the table by the next column", "Moving"),
    KeyCommand("sort_reverse", ("S",), "S", "Reverse", "turn the order of the table round", "Moving"),
    KeyCommand("open", ("enter",), "enter", "Open", "what is behind the line: facts, an effect, the question of a switch",
            "Moving"),
    KeyCommand("every_engine", ("e",), "e", "Every engine", "a line for each, or only for those that stand out", "Moving"),
    KeyCommand("next_list", ("v",), "v", "Other list", "worst tokens by |d| or k3, worst sequences, a fair sample",
            "Moving"),
    KeyCommand("back", ("escape",), "esc", "Back", "leave zoom, or go back to the overview", "Moving"),
    KeyCommand("remedy", ("r",), "r", "Remedy", "switch what cures the cause under the diagnosis' cursor; asks first",
            "Alarms", needs_control=True, footer="remedy", view="diagnosis"),
    KeyCommand("probe", ("X",), "X", "Probe", "the experiment that would tell the cause under the cursor; asks first",
            "Alarms", needs_control=True, footer="probe", view="diagnosis"),
    KeyCommand("acknowledge", ("a",), "a", "Acknowledge", "take note of the open alarm: no more is told of it",
            "Alarms", needs_control=True, footer="ack", view="diagnosis"),
    KeyCommand("silence", ("A",), "A", "Silence", "tell nothing of the open alarm for 30 minutes", "Alarms",
            needs_control=True),
    KeyCommand("switch", ("t",), "t", "Switch", "change what is under the cursor of the control view; asks first",
            "Control", needs_control=True, footer="switch"),
    KeyCommand("keep", ("K",), "K", "Keep", "stop the timer under the cursor: the change stays; asks first",
            "Control", needs_control=True),
    KeyCommand("undo", ("u",), "u", "Undo", "bring engines back to what they had before the change; asks first",
            "Control", needs_control=True),
    KeyCommand("effect", ("E",), "E", "Effect", "what the change under the cursor did, against before and the others",
            "Control"),
    KeyCommand("pause", ("p",), "p", "Pause or resume", "stop or go on generating, on the whole fleet; asks first",
            "Control", needs_control=True),
    KeyCommand("flush", ("f",), "f", "Flush", "forget cached prefixes on the whole fleet; asks first", "Control",
            needs_control=True),
    KeyCommand("screenshot", ("ctrl+s", "P"), "P ctrl+s", "Screenshot", "save the screen as SVG", "Application"),
    KeyCommand("quit", ("q", "ctrl+c"), "q ctrl+c", "Detach", "leave; the run goes on", "Application", footer="detach"),
)  # fmt: skip

BY_ID: dict[str, KeyCommand] = {command.id: command for command in COMMANDS}
