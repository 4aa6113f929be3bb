"""The warnings of a collapse of adversarial training: their step and text, and states that are not a collapse."""

import json
from types import SimpleNamespace

import pytest

from accel_restore.callbacks.collapse import CollapseWarning
from accel_restore.callbacks.metrics_logger import is_before
from accel_restore.config.adversarial import Adversarial

HEALTHY = {"d_accuracy": 0.8, "g_share": 0.2, "d_loss": 1.2}


class Run:
    """A metrics.jsonl that grows by a line every 10 steps, and what was warned of."""

    def __init__(self, path, **settings):
        self.path, self.said, self.step = path, [], 0
        self.config = Adversarial(**settings)
        self.start()

    def start(self):
        self.callback = CollapseWarning(self.path, self.config, 10, self.append, self.said.append)

    def append(self, line):
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def steps(self, count, ranks=(0, 1), **values):
        """Append lines of two ranks; `values` are those of `ranks`."""
        for _ in range(count):
            self.step += 10
            for rank in (0, 1):
                own = values if rank in ranks else {}
                self.append({"event": "train", "step": self.step, "rank": rank, **HEALTHY, **own})
            self.callback.on_step(SimpleNamespace(step=self.step, epoch=0))

    def validate(self, epoch, **scores):
        self.append({"event": "epoch", "epoch": epoch, "step": self.step, **scores})
        self.callback.on_epoch(SimpleNamespace(step=self.step, epoch=epoch + 1), None)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"d_accuracy": 1.0}, "step 120: for 100 steps the discriminator was right on more than 99%"),
        ({"g_share": 1e-5}, "step 120: for 100 steps the adversarial term had less than 0.0001 of the gradient"),
    ],
)
def test_a_state_that_lasts_is_warned_of_once(run, values, said):
    run.steps(2)
    run.steps(9, **values)
    assert run.said == []
    run.steps(8, **values)
    assert len(run.said) == 1 and run.said[0].startswith(said) and "lower adversarial.optimizer.lr" in run.said[0]
    (line,) = (line for line in map(json.loads, run.path.read_text().splitlines()) if line["event"] == "collapse")
    assert line["step"] == 120 and line["text"] in run.said[0]


@pytest.mark.parametrize(
    ("loss", "chance"), [("vanilla", 1.3863), ("lsgan", 0.5), ("hinge", 2.0), ("relativistic", 0.6931)]
)
def test_a_discriminator_whose_mean_loss_is_above_chance_is_warned_of(tmp_path, loss, chance):
    run = Run(tmp_path / "metrics.jsonl", loss=loss)
    run.steps(20, d_loss=chance)
    run.steps(9, d_loss=1.011 * chance)
    assert run.said == []
    run.steps(2, d_loss=1.011 * chance)
    (text,) = run.said
    assert text.startswith(f"step 300: over 100 steps the discriminator's loss was {1.011 * chance:.4g} on average")
    assert "lower adversarial.optimizer.lr" in text


def test_wgan_has_no_loss_at_chance_to_compare_with(tmp_path):
    run = Run(tmp_path / "metrics.jsonl", loss="wgan", r1=1.0)
    run.steps(20, d_loss=5.0)
    assert run.said == []


def test_a_state_that_ends_in_between_is_no_collapse(run):
    for _ in range(5):
        run.steps(9, d_accuracy=1.0, g_share=1e-5)
        run.steps(1)
    assert run.said == []


@pytest.mark.parametrize("ranks", [(0,), (1,)])
def test_a_state_of_one_rank_is_no_collapse(run, ranks):
    run.steps(20, ranks=ranks, d_accuracy=1.0, g_share=1e-6)
    assert run.said == []


def test_a_run_that_continues_gives_the_warning_at_the_same_step(run):
    run.steps(6, d_accuracy=1.0)
    run.start()
    run.steps(4, d_accuracy=1.0)
    assert [text.split(":")[0] for text in run.said] == ["step 100"]
    run.start()  # after the warning
    run.steps(9, d_accuracy=1.0)
    assert len(run.said) == 1


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("psnr", [24.0, 25.0, 23.5, 22.9], "psnr of validation is 22.90 dB, 2.10 dB below the best"),
        ("lpips", [0.30, 0.20, 0.24, 0.26], "lpips of validation is 0.2600, above the best"),
    ],
)
def test_a_validation_much_worse_than_the_best_is_warned_of(run, name, values, said):
    for epoch, value in enumerate(values):
        assert run.said == []
        run.validate(epoch, **{f"val_{name}": value})
    assert len(run.said) == 1 and said in run.said[0]


def test_scores_before_the_discriminator_starts_do_not_count(tmp_path):
    run = Run(tmp_path / "metrics.jsonl", starts_at_epoch=2)
    for epoch, value in enumerate([40.0, 40.0, 30.0, 29.0]):
        run.validate(epoch, val_psnr=value)
    assert run.said == []


def test_lines_without_a_discriminator_are_no_collapse(run):
    run.steps(20, d_accuracy=None, g_share=None, d_loss=None)
    run.validate(0, val_psnr=None)
    assert run.said == []


def test_a_warning_of_a_validation_that_is_repeated_is_given_again(run):
    run.steps(2)
    run.validate(0, val_psnr=25.0)
    run.steps(2)
    run.validate(1, val_psnr=20.0)
    whole = run.path.read_text()
    assert json.loads(whole.splitlines()[-1])["kind"] == "psnr"
    stopped = SimpleNamespace(epoch=1, step=40)  # a commit in the second validation
    kept = [line for line in whole.splitlines() if is_before(json.loads(line), stopped)]
    assert [json.loads(line)["event"] for line in kept[-2:]] == ["train", "train"]
    run.path.write_text("".join(line + "\n" for line in kept))
    run.start()
    run.validate(1, val_psnr=20.0)
    assert run.path.read_text() == whole
    completed = SimpleNamespace(epoch=2, step=40)
    assert all(is_before(json.loads(line), completed) for line in whole.splitlines())


def test_a_file_that_cannot_be_read_does_not_end_training(run):
    run.steps(6, d_accuracy=1.0)
    aside = run.path.rename(run.path.with_name("aside"))
    run.path.mkdir()
    run.callback.on_step(SimpleNamespace(step=70, epoch=0))
    run.path.rmdir()
    aside.rename(run.path)
    run.steps(4, d_accuracy=1.0)
    assert [text.split(":")[0] for text in run.said] == ["step 100"]
