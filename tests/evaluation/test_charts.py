import math

import pytest

from arpo.display.charts import Line, Panel, draw, running_mean


def test_nothing_to_draw_writes_nothing(tmp_path):
    assert draw(tmp_path / "x.png", [Panel(title="empty", lines=[Line(label="a", x=[1], y=[None])])]) is None
    assert not (tmp_path / "x.png").exists()


@pytest.mark.real_plots
def test_gaps_single_points_and_large_numbers_are_drawn(tmp_path):
    panels = [
        Panel(title="gap", lines=[Line(label="a", x=[1, 2, 3], y=[1.0, None, math.nan])]),
        Panel(title="one", lines=[Line(label="a", x=[7], y=[1e6]), Line(label="b", x=[7], y=[2e6])], stack=True),
        Panel(
            title="flat",
            lines=[Line(label="a", x=[1, 2], y=[0.0, 0.0], low=[0, 0], high=[0, 0])],
            percent=True,
            notes=[(0.5, "goal")],
        ),
    ]
    assert draw(tmp_path / "sub" / "x.png", panels).read_bytes().startswith(b"\x89PNG")


def test_running_mean_skips_holes():
    assert running_mean([1.0, math.nan, 3.0], 3) == [1.0, 2.0, 3.0]
    assert math.isnan(running_mean([math.nan], 3)[0])
