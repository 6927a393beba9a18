"""Which parts of a picture speak for an answer, found by looking into a checkpoint's network.

Both methods explain the label's log-odds, as `linnet.evaluation.explanation` does.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor, nn

from linnet.errors import NetworkError
from linnet.evaluation.explanation import Attribution, Explanation, Pixels, blurred
from linnet.inference.answers import Rule
from linnet.training.network import Classifier, layers_named, load_checkpoint

_STEPS = 128
_BATCH = 16


class OpenedCheckpoint:
    """A checkpoint's network, ready to answer pictures and to say where the answers come from.

    Raises:
        CheckpointError: the folder is absent, half written or damaged.
    """

    def __init__(self, path: Path) -> None:
        network, manifest = load_checkpoint(path)
        self.path = path
        self.classes = manifest.classes
        self.preprocessing = manifest.preprocessing
        self.rule = Rule()
        self._classifier = Classifier(network, manifest.mean, manifest.std).eval()

    def probabilities(self, pictures: Pixels) -> Attribution:
        """Return probabilities [N, C] of prepared pictures, uint8 [N, S, S, 3], RGB."""
        with torch.inference_mode():
            logits = self._classifier(torch.from_numpy(pictures))
        return np.asarray(logits.softmax(dim=1), np.float32)

    def integrated_gradients(self, picture: Pixels, label: int) -> Explanation:
        """Explain by the gradients on the way from the blurred picture to the picture.

        The attributions [S, S] add up to the difference of the label's log-odds between the two.
        Source: Sundararajan et al., Axiomatic Attribution for Deep Networks, 2017; Captum.
        """
        shown, hidden = (self._input(each) for each in (picture, blurred(picture)))
        method = IntegratedGradients(self._log_odds_of(label))
        found = method.attribute(
            shown, baselines=hidden, n_steps=_STEPS, internal_batch_size=_BATCH
        )
        return self._explanation(picture, label, found.sum(dim=1)[0])

    def grad_cam(self, picture: Pixels, label: int, layer: str | None = None) -> Explanation:
        """Explain by the maps of a layer, weighted by the label's gradient; never below 0.

        `layer` is a name in the network; null: the last one that gives maps. Source: Selvaraju et
        al., Grad-CAM, 2017; Captum.

        Raises:
            TrainingError: the network has no such layer, with the nearest names.
            NetworkError: the layer gives no maps.
        """
        name = layer or self._last_maps(picture)
        (module,) = layers_named(self._classifier.network, [name], "layer")
        shape = self._shapes(picture)[name]
        if len(shape) != 4 or shape[2] * shape[3] == 1:
            raise NetworkError(
                f"layer {name!r} of {self.path} gives {list(shape)}, and Grad-CAM needs maps "
                f"[N, C, H, W]: name an earlier layer, such as {self._last_maps(picture)}"
            )
        method = LayerGradCam(self._log_odds_of(label), module)
        found = method.attribute(self._input(picture), relu_attributions=True)
        grown = nn.functional.interpolate(found, picture.shape[:2], mode="bilinear")
        return self._explanation(picture, label, grown[0, 0])

    def _explanation(self, picture: Pixels, label: int, found: Tensor) -> Explanation:
        (answer,) = self.probabilities(picture[np.newaxis])
        return Explanation(label, float(answer[label]), np.asarray(found.detach(), np.float32))

    def _input(self, picture: Pixels) -> Tensor:
        return self._classifier.normalise(torch.from_numpy(picture[np.newaxis]))

    def _log_odds_of(self, label: int) -> Callable[[Tensor], Tensor]:
        def log_odds(pictures: Tensor) -> Tensor:
            logits: Tensor = self._classifier.network(pictures)
            others = torch.cat((logits[:, :label], logits[:, label + 1 :]), dim=1)
            return logits[:, label] - others.logsumexp(dim=1)

        return log_odds

    def _last_maps(self, picture: Pixels) -> str:
        """Return the last layer that gives as many maps as the network has features."""
        network = self._classifier.network
        wanted = getattr(network, "num_features", None)
        named = [
            name
            for name, shape in self._shapes(picture).items()
            if len(shape) == 4 and shape[1] == wanted and shape[2] * shape[3] > 1
        ]
        if not named:
            raise NetworkError(
                f"{self.path} has no layer that gives maps, which Grad-CAM needs: use the method "
                "integrated_gradients or occlusion"
            )
        return named[-1]

    def _shapes(self, picture: Pixels) -> dict[str, tuple[int, ...]]:
        """Return the shape that each layer gives, in the order in which they are computed."""
        shapes: dict[str, tuple[int, ...]] = {}

        def noting(name: str) -> Callable[[nn.Module, object, object], None]:
            def note(module: nn.Module, given: object, output: object) -> None:
                shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else ()

            return note

        network = self._classifier.network
        hooks = [
            module.register_forward_hook(noting(name))
            for name, module in network.named_modules()
            if name
        ]
        with torch.inference_mode():
            network(self._input(picture))
        for hook in hooks:
            hook.remove()
        return shapes
