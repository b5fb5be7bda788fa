"""An example of every command, for its help and for docs/commands.md; and what to do first."""

from __future__ import annotations

EXAMPLES = {
    "build": "attnpass build",
    "cka": "attnpass cka digits --picture cka.png",
    "completion": "attnpass completion bash >> ~/.bashrc",
    "diff": "attnpass diff last 3f2a9c",
    "doctor": "attnpass doctor",
    "explain-choice": "attnpass explain-choice last blocks.0.attn",
    "export": "attnpass export last plan.json",
    "gc": "attnpass gc --dry-run",
    "import": "attnpass import plan.json",
    "init": "attnpass init hf:MODEL --data reviews.csv",
    "pin": "attnpass pin last",
    "report": "attnpass report last --out report.html",
    "results": "attnpass results last",
    "roundtrip": "attnpass roundtrip digits",
    "serve-check": "attnpass serve-check plan.json task.yaml",
    "show": "attnpass show last",
    "sites": "attnpass sites hf:MODEL --data reviews.csv",
    "solve": "attnpass solve last --max-drop 0.02",
    "tiles": "attnpass tiles digits",
    "tune": "attnpass tune hf:MODEL --data reviews.csv --max-drop 0.01 --recover distil",
    "unpin": "attnpass unpin last",
    "verify": "attnpass verify plan.json digits",
}
"""Of each command one line that can be run."""

FIRST = """\
First steps:
  attnpass doctor                                  what will be fast here, and why not
  attnpass sites TASK                              the attention that is found
  attnpass tune TASK                               proven plans, and the code to use them

TASK: digits (built in), hf:MODEL --data FILE, timm:MODEL --data FOLDER, or file.py:function.
attnpass --help lists all commands.
"""
"""What ``attnpass`` alone prints."""
