"""The keys on the learning problem: model, trained part, images, mini-batches and privacy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from p2pft_flower.config.bounds import require, require_bounds
from p2pft_flower.config.learning_keys import CHOICES, HANDED_ON, NO_MODEL, PROMPT, WITH_FEATURES
from p2pft_flower.config.pixels import read_channels, read_dicom_window, read_range
from p2pft_flower.errors import ConfigError
from p2pft_flower.plugins import is_reference

__all__ = ["CHOICES", "NO_MODEL", "LearningConfig"]

TEXT_PROMPTS = ("text-prompt", "text-prompt-class")
"""Kinds of ``tune`` that train a context before the classes' names."""

MAX_IMAGE_SIZE = 2**13
"""The most pixels of a side: with patches of 16 × 16, as many tokens as a model may have."""


@dataclass(frozen=True)
class LearningConfig:
    """The learning problem: model, trained part, images, mini-batches and privacy.

    Attributes
    ----------
    problem : str
        Empty: a vision transformer is fine-tuned on images, as the keys below say. Else
        ``my_module:my_problem``, a model, data and loss of the user's own (docs/extending.md), which is given
        ``batch_size``, ``seed`` and ``data_dir``; then the other keys of this part must be left out.
    model : str
        ``glyph_vit_8`` or ``glyph_clip_8`` (embedded), a ViT, DeiT, Swin or other of timm by name
        (docs/models.md), ``my_module:my_model``, or ``none`` with ``dataset = features:…``.
    weights : str
        ``pretrained`` (the model's own), ``none`` (random, with a warning), or a file's absolute path.
    image_size : int
        Pixels of a side of the images that the model sees; 0: the model's own. Position embeddings are
        resampled to this size.
    crop_pct : float
        Share of the shorter side that the centre crop keeps, in (0, 1]; 0: the model's own.
    interpolation : {"", "nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"}
        The filter with which images are resized; empty: the model's own.
    mean : str
        The number in [0, 1] that is subtracted from pixels of 0..1: one for all channels, or one a channel as
        ``"0.485,0.456,0.406"``; empty: the model's own. A weights file does not contain it: give it if the
        file was made with another mean than the model's name implies.
    std : str
        The number in [0.001, 1] by which pixels are divided after that: one for all channels, or one a
        channel; empty: the model's own.
    tune : str
        The trained part: ``last-block`` (the paper's), ``last-blocks:K``, ``head``, ``full``, ``bias``,
        ``bias+norm``, ``lora:R`` (rank R on the attention projections), ``lora-fa:R`` (its first factor
        frozen), ``adapter:R`` (bottlenecks of width R), ``prompt:N`` or ``prompt-deep:N`` (N learned tokens).
        ``bias``, ``bias+norm``, ``lora``, ``lora-fa`` and ``adapter`` also in the last blocks alone, as
        ``lora:8:last-block`` or ``bias:last-blocks:2``. With a text tower also ``text-prompt:N`` (N learned
        vectors before the classes' names) and ``text-prompt-class:N`` (N a class). Of features ``head``,
        ``mlp:WIDTH`` (a layer of so many numbers before the classifier), ``text-prompt:N`` or
        ``text-prompt-class:N``.
    head : {"random", "text"}
        The beginning of the classifier: drawn from ``seed``, or the text embeddings of the classes' names, so
        that iteration 0 is what a vision-language model knows without training (zero-shot).
    text_embeddings : str
        Absolute path of a ``.safetensors`` or ``.npz`` file of text embeddings for ``head = text``
        (docs/features.md); if it is set, no text tower is used.
    text_tower : str
        The text tower that makes the embeddings for ``head = text``, as open_clip calls it (docs/clip.md):
        ``glyph_clip_8`` (embedded), ``local-dir:/folder``, ``hf-hub:owner/name``, or ``NAME:TAG``, such as
        ``ViT-B-32:openai``.
    prompts : str
        The templates around a class's name: one, with ``{}`` for the name, ``imagenet80``, or the absolute
        path of a text file with a template a line.
    class_names : str
        Absolute path of a JSON file, one object with the name of each class, such as ``{"0": "zero"}``;
        empty: the dataset's own names.
    device : {"auto", "cpu", "cuda", "mps"}
        The device of the model and, without a codec, of θ, τ and gradients; ``auto``: an accelerator if there
        is one.
    cache : bool
        Whether the frozen part's output for an image is stored in ``$P2PFT_HOME/cache`` and computed only
        once (``p2pft cache list``).
    cache_dtype : {"float16", "float32"}
        Precision of stored outputs.
    trunk_dtype : {"auto", "float32", "bfloat16"}
        Precision in which the frozen part computes; ``auto``: bfloat16 if the hardware multiplies in it.
    dataset : str
        ``digits``, ``cifar10``, ``cifar100``, ``oxford-iiit-pet``, ``oxford-flowers102``, ``folder:/path``
        (train/ and test/ with a folder a class), ``folder:/path-{peer}`` (a folder for each peer, by its
        number), ``table:/path.csv`` (a row an image, with columns ``image``, ``label`` and ``split``,
        docs/clinical-data.md; with ``{peer}`` a table for each peer), ``features:/path.npz`` or
        ``.safetensors`` (vectors that a model made elsewhere, docs/features.md; with ``{peer}`` a file for
        each peer), ``medmnist:pathmnist`` or another file of MedMNIST in ``data_dir``, ``hf:NAME`` or
        ``hf:/path`` (a dataset of Hugging Face, of the hub or in a folder; both docs/images.md), or
        ``my_module:my_dataset``.
    data_dir : str
        The folder of torchvision's folders (``cifar-10-batches-py``, …) and of MedMNIST's files; empty:
        ``$P2PFT_HOME/data``. Of a table the folder from which its paths lead to images; empty: the table's
        own. Datasets of the user's own are given this folder, too.
    download : bool
        Whether a dataset that is not there may be fetched, by torchvision or from Hugging Face's hub.
    verify : bool
        Whether to refuse copies of ``cifar10``, ``cifar100`` and ``oxford-flowers102`` whose md5 sums are not
        the official ones; false: they are accepted with a warning.
    validation : float
        Share of each class's training images in [0, 1), drawn by ``seed`` before ``shots``, on which peers
        are scored instead of the test images: to choose settings without a look at the test images; 0: they
        are scored on the test images. With ``keep = best:…`` the share of each class of each peer's own
        training images, drawn after ``shots``, by which the best θ is chosen; results are then of the test
        images.
    keep : {"last", "best:balanced-accuracy", "best:loss"}
        The θ that peers end with: the last one, or that of the evaluation with the best mean of all peers'
        scores on their ``validation`` images, which they agree on among themselves
        (docs/keeping-the-best.md).
    evaluate_on : int
        Number of the images on which peers are scored, drawn by ``seed`` once for all peers that share them;
        with a folder for each peer so many of each at most; 0: all.
    shots : int
        Number of training images of each class, drawn by ``seed`` before they are dealt out; 0: all.
    partition : str
        ``auto`` (``own`` if there is a folder for each peer, ``by:peer`` or ``by:site`` if a table has such a
        column, Table 1's classes if the paper gives them, else disjoint classes, else ``dirichlet:0.5``),
        ``by:COLUMN`` (a table's rows with one value of the column each; ``by:center=B,A`` gives the values
        in the peers' order, which is else their natural order), ``classes:0-1,2-3,4-6,7-9`` (positions) or
        ``classes:cat+dog,"a, b"`` (names; docs/images.md), ``iid``, ``dirichlet:ALPHA``, ``shards:K`` (K
        classes a peer), ``own`` (a folder or file for each peer), or ``my_module:my_partition``.
    stream : bool
        Whether a folder's training images are listed again at the start of each pass over them, so that new
        ones join in; needs ``dataset = folder:…`` and ``partition`` ``auto``, ``classes:…`` or ``own``.
    pixel_range : str
        The values that are black and white if an image has more than 8 bits a sample, signs or fractions:
        ``auto`` (the file's own; if it declares none, or its samples do not fit, the run is refused), or
        ``LOW:HIGH``, as ``"-1000:400"``; with a folder for each peer also one of these a peer, separated by
        commas (or ``pixel-range`` in a site's node-config).
    dicom_window : str
        The window of grey DICOM files of more than 8 bits, in the modality's units (Hounsfield for CT):
        ``auto`` (each file's own; of files without one ``pixel_range`` decides), or ``CENTRE:WIDTH``, as
        ``"40:400"``, which counts before the files' own and before ``pixel_range``.
    bad_images : {"refuse", "skip"}
        Whether an image that cannot be read ends the run, which names the first (``refuse``), or is searched
        for before the run, left out and named in a warning (``skip``).
    max_megapixels : float
        The largest images, in millions of pixels; 0: Pillow's own limit, 178.9. A larger one cannot be read
        (``bad_images``): a small file can claim more pixels than the memory holds.
    augment : str
        ``none``, ``basic`` (timm's random resized crop and horizontal flip), or one of timm's
        auto-augmentations on top of ``basic``, such as ``rand-m9-mstd0.5-inc1``. Training images only; their
        trunk's outputs cannot be stored then.
    loss : {"auto", "ce", "bce"}
        The loss of an image: cross-entropy of its one class (``ce``), or of each label alone the binary one,
        the mean over the labels (``bce``), if an image may have several labels or none (a table's column
        ``labels``, docs/multi-label.md); ``auto``: what the data need. The other kind's loss is refused.
    class_weights : {"none", "balanced"}
        Whether all images count alike in the training loss, or rare classes more: an image of class c
        N / (C N_c) times, where N_c of all peers' N training images, of C classes, are of class c; of several
        labels an image with label c (N − N_c) / N_c times in that label's loss. The peers sum up N_c along
        their edges at the start (docs/per-class.md). Test losses are not weighted.
    batch_size : int
        Number of images in one mini-batch of one peer; the average number if ``dp_clip`` > 0.
    batched : {"auto", "true", "false"}
        Whether a host computes its peers' gradients together, which is faster with many, or one after the
        other; ``auto``: together in runs of 32 peers and more, if the model admits that. Both agree up to
        rounding (docs/performance.md).
    dp_clip : float
        L2 norm to which each training image's gradient is clipped, for differential privacy (docs/privacy.md;
        needs the extra ``dp``); 0: no privacy.
    dp_noise : float
        Standard deviation, in units of ``dp_clip``, of the noise that is added to a batch's sum of gradients;
        0: no noise, the gradients are clipped only, which is not private.
    dp_delta : float
        δ of the reported (ε, δ); 0: 1 / (10 N), N the number of the peer's training images.
    seed : int
        The seed, which decides partition, new head, mini-batches and every other draw; in a deployment not
        the draws that ``dp_clip`` makes.

    Raises
    ------
    ConfigError
        If a value cannot be used; the message names the key, the value and the choices.
    """

    problem: str = ""
    model: str = "glyph_vit_8"
    weights: str = "pretrained"
    image_size: int = 0
    crop_pct: float = 0.0
    interpolation: str = ""
    mean: str = ""
    std: str = ""
    tune: str = "last-block"
    head: str = "random"
    text_embeddings: str = ""
    text_tower: str = ""
    prompts: str = PROMPT
    class_names: str = ""
    device: str = "auto"
    cache: bool = True
    cache_dtype: str = "float16"
    trunk_dtype: str = "auto"
    dataset: str = "digits"
    data_dir: str = ""
    download: bool = False
    verify: bool = True
    validation: float = 0.0
    keep: str = "last"
    evaluate_on: int = 0
    shots: int = 0
    partition: str = "auto"
    stream: bool = False
    pixel_range: str = "auto"
    dicom_window: str = "auto"
    bad_images: str = "refuse"
    max_megapixels: float = 0.0
    augment: str = "none"
    loss: str = "auto"
    class_weights: str = "none"
    batch_size: int = 32
    batched: str = "auto"
    dp_clip: float = 0.0
    dp_noise: float = 0.0
    dp_delta: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            value = getattr(self, key)
            named = ", ".join(choice or "empty" for choice in choices)
            require(value in choices, key.replace("_", "-"), value, f"one of {named}")
        require(
            0 <= self.image_size <= MAX_IMAGE_SIZE,
            "image-size",
            self.image_size,
            f"a whole number of pixels, at most {MAX_IMAGE_SIZE}, or 0",
        )
        require(0.0 <= self.crop_pct <= 1.0, "crop-pct", self.crop_pct, "in (0, 1], or 0")
        read_channels("mean", self.mean)
        read_channels("std", self.std)
        self.pixel_ranges, self.dicom_range  # noqa: B018 - they refuse what they cannot read
        require_bounds(self)
        require(0.0 <= self.dp_delta < 1.0, "dp-delta", self.dp_delta, "in [0, 1)")
        require(0.0 <= self.validation < 1.0, "validation", self.validation, "a share in [0, 1)")

    @property
    def sited(self) -> bool:
        """Whether each peer has a folder or table of images, or a file of features, of its own."""
        return self.dataset.startswith(("folder:", "features:", "table:")) and "{peer}" in self.dataset

    @property
    def keeps_best(self) -> bool:
        """Whether the peers end with their best θ, and not with the last one."""
        return self.chosen_by is not None

    @property
    def balances(self) -> bool:
        """Whether the loss is weighted by class."""
        return self.class_weights == "balanced"

    @property
    def agrees(self) -> bool:
        """Whether the peers agree on something by tables that they send along their edges."""
        return self.keeps_best or self.balances

    @property
    def chosen_by(self) -> str | None:
        """The score by which the best θ is chosen, ``balanced-accuracy`` or ``loss``; None: the last is."""
        return None if self.keep == "last" else self.keep.removeprefix("best:")

    @property
    def of_features(self) -> bool:
        """Whether the samples are features that a model made elsewhere."""
        return self.dataset.startswith("features:")

    @property
    def pixel_ranges(self) -> tuple[tuple[float, float] | None, ...]:
        """The (black, white) of each part of ``pixel_range``, for all peers or one a peer; None: ``auto``."""
        return tuple(read_range(text.strip()) for text in self.pixel_range.split(","))

    @property
    def dicom_range(self) -> tuple[float, float] | None:
        """The (black, white) of ``dicom_window``; None: ``auto``."""
        return read_dicom_window(self.dicom_window)

    def pixel_range_of(self, peer: int) -> str:
        """Return the part of ``pixel_range`` for one peer's images.

        Raises
        ------
        ConfigError
            If there is one range a peer, and none for this peer.
        """
        ranges = [text.strip() for text in self.pixel_range.split(",")]
        if len(ranges) > 1 and peer >= len(ranges):
            raise ConfigError(
                f"pixel-range = {self.pixel_range!r} has {len(ranges)} ranges and none for peer {peer}: give "
                "one for all, or one a peer"
            )
        return ranges[0] if len(ranges) == 1 else ranges[peer]

    def check_problem(self) -> None:
        """Check the settings beside a ``problem`` of the user's own.

        Raises
        ------
        ConfigError
            If ``problem`` names no function, or keys of vision transformers are set beside it; the message
            names these.
        """
        if not is_reference(self.problem):
            raise ConfigError(
                f"problem = {self.problem!r}: must be empty, my_module:my_problem or /path/file.py:my_problem"
            )
        given = self._given_beside(HANDED_ON)
        if given:
            raise ConfigError(
                f"{', '.join(given)} with problem = {self.problem!r}: a problem of your own brings its "
                "model and its data, and these keys are of vision transformers: leave them out. Of the keys "
                f"on what is learned it is given {', '.join(key.replace('_', '-') for key in HANDED_ON[1:])}"
            )

    def check_data(self) -> None:
        """Check that the settings of the data go together; each alone was checked at construction.

        Raises
        ------
        ConfigError
            If two settings contradict each other; the message names them.
        """
        self._check_features()
        if self.sited and self.partition not in ("auto", "own"):
            raise ConfigError(
                f"partition = {self.partition!r} with dataset = {self.dataset!r}: each peer has "
                f"{'a folder' if self.dataset.startswith('folder:') else 'a file'} of its own, so nothing is "
                "dealt out; choose auto or own"
            )
        if self.partition == "own" and not self.sited:
            raise ConfigError(
                f"partition = 'own' with dataset = {self.dataset!r}: give dataset = folder:/path, "
                "table:/path or features:/path with {peer} in it, as folder:/data/site-{peer}"
            )
        if len(self.pixel_ranges) > 1 and not self.sited:
            raise ConfigError(
                f"pixel-range = {self.pixel_range!r} with dataset = {self.dataset!r}: one range a peer needs "
                "a folder or table for each peer (dataset = folder:/path with {peer} in it); give one for "
                "all images"
            )
        for key, value in (("dp-noise", self.dp_noise), ("dp-delta", self.dp_delta)):
            if value and not self.dp_clip:
                raise ConfigError(
                    f"{key} = {value} with dp-clip = 0: nothing would be private; give dp-clip, the norm to "
                    "which each image's gradient is clipped, such as 1.0"
                )
        self._check_validation()
        self._check_weights()
        if not self.stream:
            return
        if self.dp_clip:
            raise ConfigError(
                f"stream = true with dp-clip = {self.dp_clip}: what a gradient reveals depends on the "
                "number of images, which must not change while it is counted; choose one of the two"
            )
        if not self.dataset.startswith("folder:"):
            raise ConfigError(f"stream = true with dataset = {self.dataset!r}: only a folder:/path can grow")
        if self.shots:
            raise ConfigError(
                f"stream = true with shots = {self.shots}: shots are drawn once, of images that are there; "
                "choose one of the two"
            )
        if self.partition not in ("auto", "own") and not self.partition.startswith("classes:"):
            raise ConfigError(
                f"stream = true with partition = {self.partition!r}: whose a new image is must follow from "
                "its class or its folder; choose auto, classes:0-1,2-3,… or own"
            )

    def _check_validation(self) -> None:
        """Check that the images to be held out can be drawn, and that there are some if θ is chosen by them.

        Raises
        ------
        ConfigError
            If ``validation`` and ``keep``, ``stream`` or ``dataset`` contradict each other.
        """
        if self.keeps_best and not self.validation:
            raise ConfigError(
                f"keep = {self.keep!r} with validation = 0: the best θ is chosen by training images that are "
                "held out, never by test images: give validation, their share, such as 0.1"
            )
        if self.validation and (self.stream or (self.sited and not self.keeps_best)):
            what = f"stream = {str(self.stream).lower()}, dataset = {self.dataset!r}"
            raise ConfigError(
                f"validation = {self.validation} with keep = {self.keep!r}, {what}: the images to be held "
                "out are drawn once, from a dataset that all peers share; give one, without stream, or "
                "keep = best:…, with which each peer holds out some of its own"
            )

    def _check_weights(self) -> None:
        """Check that the numbers of images by class stay as they are, and may leave their site.

        Raises
        ------
        ConfigError
            If ``class_weights`` and ``stream`` or ``dp_clip`` contradict each other.
        """
        if self.balances and self.stream:
            raise ConfigError(
                f"class-weights = {self.class_weights!r} with stream = true: the numbers of images of the "
                "classes are summed up once, and a stream's grow; choose one of the two"
            )
        if self.balances and self.dp_clip:
            raise ConfigError(
                f"class-weights = {self.class_weights!r} with dp-clip = {self.dp_clip}: the peers would tell "
                "each other their exact numbers of images of each class, which are not private: choose one "
                "of the two"
            )

    def _check_text(self) -> None:
        """Check that the settings of texts go together.

        Raises
        ------
        ConfigError
            If a text head has no source of texts, a source no text head, or ``tune`` needs another head.
        """
        given = [f"{key} = {value!r}" for key, value in self._texts().items() if value]
        if self.head != "text" and given:
            raise ConfigError(f"head = {self.head!r} with {', '.join(given)}: only head = text reads texts")
        if self.head == "text" and not (self.text_tower or self.text_embeddings):
            raise ConfigError(
                "head = 'text' needs text-tower, the name of a model of open_clip, or text-embeddings, the "
                "absolute path of a file of text embeddings"
            )
        kind = self.tune.partition(":")[0]
        if kind in TEXT_PROMPTS and (self.head != "text" or not self.text_tower):
            raise ConfigError(
                f"tune = {self.tune!r} with head = {self.head!r}, text-tower = {self.text_tower!r}: a "
                "learned prompt is trained through a text tower: give head = text and text-tower"
            )
        if kind in TEXT_PROMPTS and self.text_embeddings:
            raise ConfigError(
                f"tune = {self.tune!r} with text-embeddings = {self.text_embeddings!r}: a learned prompt is "
                "trained through the text tower itself: leave text-embeddings out"
            )

    def _texts(self) -> dict[str, str]:
        """Return the keys on texts, with an empty value where they have their default."""
        return {
            "text-tower": self.text_tower,
            "text-embeddings": self.text_embeddings,
            "class-names": self.class_names,
            "prompts": "" if self.prompts == PROMPT else self.prompts,
        }

    def _check_features(self) -> None:
        """Check that the settings fit features, or images.

        Raises
        ------
        ConfigError
            If a setting is for the other kind of samples, or is missing; the message names it.
        """
        self._check_text()
        kind, _, number = self.tune.partition(":")
        if not self.of_features:
            if self.model == NO_MODEL or kind == "mlp":
                raise ConfigError(
                    f"model = {self.model!r}, tune = {self.tune!r} with dataset = {self.dataset!r}: model = "
                    "none and tune = mlp:WIDTH are for features: give dataset = features:/path.npz or "
                    "features:/path.safetensors"
                )
            return
        fits = self.tune == "head" or (kind in ("mlp", *TEXT_PROMPTS) and number.isdecimal())
        if self.model != NO_MODEL or not fits:
            raise ConfigError(
                f"model = {self.model!r}, tune = {self.tune!r} with dataset = {self.dataset!r}: features "
                "were made by a model elsewhere, and only a head is trained on them: give model = none, and "
                "tune = head, mlp:WIDTH or, with a text tower, text-prompt:N"
            )
        if self.head == "text" and kind == "mlp":
            raise ConfigError(
                f"head = 'text' with tune = {self.tune!r}: text embeddings are the weights of one layer: "
                "give tune = head"
            )
        if given := self._given_beside(WITH_FEATURES):
            raise ConfigError(
                f"{', '.join(given)} with dataset = {self.dataset!r}: these keys are for images, and there "
                "are none: leave them out"
            )

    def _given_beside(self, names: tuple[str, ...]) -> list[str]:
        """Return, as ``key = value``, the keys that are not in ``names`` and have not their default."""
        return [
            f"{f.name.replace('_', '-')} = {getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.name not in names and getattr(self, f.name) != f.default
        ]
