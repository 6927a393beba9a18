"""The words of a search's plots."""

import json
from types import SimpleNamespace

from linnet.training.search_plots import draw, short_words


def test_settings_that_go_together_are_named_by_what_sets_them_apart() -> None:
    groups = [_group(batch_size=32, network="resnet18"), _group(batch_size=32, network="mlp")]
    assert list(short_words(groups).values()) == ["resnet18", "mlp"]
    files = [_group(weights=f"s3://bucket/{name}.pth") for name in ("old", "new")]
    assert list(short_words([*files, "skip"]).values()) == ["old.pth", "new.pth", "skip"]


def test_all_that_differs_is_named_where_no_setting_alone_tells_them_apart() -> None:
    groups = [_group(batch_size=b, lr=r, seed=1) for b, r in ((32, 0.1), (32, 0.2), (64, 0.2))]
    assert list(short_words(groups).values()) == [
        "batch_size 32, lr 0.1",
        "batch_size 32, lr 0.2",
        "batch_size 64, lr 0.2",
    ]


def test_no_label_of_the_parallel_coordinates_is_cut_json() -> None:
    networks = ("resnet18", "mobilenetv2_100", "spnasnet_100")
    drawn = [{"together": _group(network=name, weights="none"), "lr": 0.1} for name in networks]
    trials = [
        SimpleNamespace(number=n, outcome="complete", value=n / 4, drawn=d, by_epoch=(n / 4,))
        for n, d in enumerate(drawn, start=1)
    ]
    plot = draw(trials, {}, "val_accuracy")["parallel-coordinates"]
    assert all(f"<!-- {name} -->" in plot for name in networks)
    assert "{" not in "".join(line for line in plot.splitlines() if "<!--" in line)


def _group(**settings: object) -> str:
    return json.dumps(settings, sort_keys=True)
