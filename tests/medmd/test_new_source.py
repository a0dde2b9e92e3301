"""The example of docs/data.md, "Adding a source", runs as it is printed there."""

import re
from pathlib import Path

from building import text_of
from PIL import Image
from portals import pixels, table

from radfm.medmd.plan import PlanOptions, make_plan

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_documented_adapter_reads_its_portal(tmp_path):
    (code,) = re.findall(r"```python\n(\"\"\"Knees.*?)```", DOCUMENT.read_text(), re.DOTALL)
    namespace: dict = {"__package__": "radfm.medmd.sources", "__name__": "radfm.medmd.sources.knees"}
    exec(compile(code, str(DOCUMENT), "exec"), namespace)
    (source,) = namespace["SOURCES"]
    Image.fromarray(pixels(1)).save(tmp_path / "k1.png")
    table(tmp_path / "labels.csv", ("file", "patient", "effusion", "fracture", "set"), [("k1.png", "P1", 1, "", "train")])
    plan, _ = make_plan(tmp_path / "plan.sqlite", {source: tmp_path}, PlanOptions())
    rows = [row for slice_ in plan.slices() for row in plan.rows(slice_)]
    assert [text_of(row, "assistant") for row in rows] == ["joint effusion"]
    assert rows[0]["findings"] == [{"name": "joint effusion", "value": 1}]
    assert rows[0]["body_part"] == "knee" and "P1" not in str(rows[0]["group"])
