"""Pictures of a run: the curves."""

from made_run import EPOCHS, made_run

from accel_restore.tracking.curves import draw_curves
from accel_restore.tracking.report.series import Metrics


def test_the_curves_count_epochs_from_1_with_integer_ticks(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    metrics = Metrics(made_run(tmp_path / "run") / "metrics.jsonl")
    metrics.read()
    draw_curves(metrics, tmp_path / "curves.png")
    panels = [panel for panel in figures[0].axes if panel.get_xlabel() == "epoch"]
    assert len(panels) == 3
    for panel in panels:
        epochs, best = (list(line.get_xdata()) for line in panel.lines)
        assert epochs == list(range(1, EPOCHS + 1)) and best == [2]
        assert all(float(tick).is_integer() for tick in panel.get_xticks())
