"""A program that calls `fit` with its own objects, on two ranks."""

import forked
import own_fit
import pytest
import torch
import yaml
from reference import configuration as reference_configuration
from runs import last_weights


@pytest.fixture
def start(reference, tmp_path):
    def start(ranks, *arguments, ema_decay=0.9):
        config = reference_configuration(reference.photos, tmp_path, ranks, name=f"ranks{ranks}")
        del config["model"]
        config["train"]["epochs"] = 1
        file, log = tmp_path / f"ranks{ranks}.yaml", tmp_path / f"ranks{ranks}.log"
        file.write_text(yaml.safe_dump(config))
        codes = forked.codes(forked.start_ranks(own_fit.main, ranks, log, str(file), *arguments))
        return config, codes, log.read_text()

    return start


def test_ranks_with_models_of_other_seeds_train_the_main_processs(start):
    one, codes, text = start(1)
    assert codes == [0], text
    two, codes, text = start(2)
    assert codes == [0, 0] and all(f"steps on rank {rank}: 8" in text for rank in (0, 1)), text
    for file in ("model.safetensors", "ema.safetensors"):
        ours, theirs = last_weights(two, file), last_weights(one, file)
        assert all(torch.allclose(ours[name], tensor, atol=1e-5) for name, tensor in theirs.items())


def test_ranks_with_other_models_are_refused(start):
    _, codes, text = start(2, 5)
    assert codes == [2, 2] and "fit: the model of rank 1 has other weights than rank 0's" in text
