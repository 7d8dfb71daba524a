import numpy as np
import pytest

from workbench.baselines import Codec2, _envelope


@pytest.fixture
def codec2():
    try:
        return Codec2("1200")
    except RuntimeError as error:
        pytest.skip(str(error))


def test_codec2_gives_as_many_samples_as_went_in_and_sounds_alike_in_energy(codec2, speech):
    wav = speech(2.0)
    codec2.measure_delay([wav], 16000)
    decoded, sent = codec2.reconstruct(wav, "", sample_rate_hz=16000)
    assert decoded.shape == wav.shape and sent is None
    assert np.corrcoef(_envelope(wav), _envelope(decoded))[0, 1] > 0.8


def test_the_delay_of_codec2_is_found(codec2, speech):
    # Its analysis looks ahead and its synthesis overlaps: some tens of milliseconds, the same for every recording.
    delays = [codec2.measure_delay([speech(3.0, seed=seed)], 16000) for seed in range(3)]
    assert max(delays) - min(delays) <= 40  # 5 ms
    assert 80 <= delays[0] <= 800


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="450, 700C"):
        Codec2("800")
