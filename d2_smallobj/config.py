"""The plugin's config keys, all under the node ``SMALLOBJ``, with their defaults."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_smallobj_config(cfg: CN) -> None:
    """Add the node ``SMALLOBJ`` with its defaults (the paper's values) to a detectron2 config.

    Args:
        cfg: the node that ``detectron2.config.get_cfg()`` returned; changed in place.
    """
    cfg.SMALLOBJ = CN()
    node = cfg.SMALLOBJ

    # ---- Model: DeepLabV2 (docs/method.md#recipe) ----------------------------------------------
    # Pixels of the input per pixel of the last feature map: 4, 8, 16 or 32. Strides that would
    # exceed it are replaced by dilation (8: res4 dilation 2, res5 dilation 4).
    node.OUTPUT_STRIDE = 8
    # MobileNetV2 (build_mobilenet_v2_backbone): multiplier (> 0) of its channels, and whether res5
    # ends with its last convolution, 1280 channels instead of 320.
    node.MOBILENET = CN()
    node.MOBILENET.WIDTH = 1.0
    node.MOBILENET.LAST_CONV = False
    # Round sizes up in the stem's max pooling, as kazuto1011/deeplab-pytorch does (a side of 160
    # gives 41 rows there, else 40); detectron2's own stem rounds down.
    node.STEM_POOL_CEIL = False
    # Dilations of the parallel 3x3 convolutions whose outputs are summed (ASPP).
    node.ASPP_DILATIONS = [6, 12, 18, 24]
    # Standard deviation of the normal distribution that ASPP weights are drawn from.
    node.ASPP_INIT_STD = 0.01
    # Multi-scale training and inference: logits at scale 1 and at SCALES, and their pixel-wise
    # maximum; one loss each, summed; the maximum is the prediction.
    node.MSC = CN()
    node.MSC.ENABLED = False
    node.MSC.SCALES = [0.5, 0.75]

    # ---- Size-weighted cross-entropy (paper, Eq. 3-4; docs/method.md#size-weights) --------------
    # Where the loss is taken: "input" = logits upsampled to the label map (small objects keep
    # their pixels), "logits" = labels nearest-resized to the logit map (the released code).
    node.LOSS_RESOLUTION = "input"
    # Upper limit of a pixel's weight, >= 1. 1 gives the plain cross-entropy.
    node.TAU = 5.0
    # A component's size is compared with all "foreground" pixels of the image, or the
    # pixels of its own "class".
    node.TOTAL = "foreground"
    # Size of a component: "exact" = its pixels, "contour" = its filled contour (released code).
    node.COMPONENT_SIZE = "exact"
    # Divisor of the summed loss: the summed "weights", or the number of valid "pixels" (Eq. 4).
    node.NORMALIZE = "weights"
    # Take that divisor over the batch of all processes, as one process with all images would.
    # False: by process; images with more ignored pixels then count more.
    node.GLOBAL_DIVISOR = True

    # ---- Two tasks (docs/method.md#size-balanced-loss) -----------------------------------------
    node.TASK_A = CN()
    # Iterations of task A, >= 0. -1: the whole run (plain training). 0: task B from the start,
    # e.g. from a cross-entropy checkpoint in MODEL.WEIGHTS. Task B lasts until SOLVER.MAX_ITER.
    node.TASK_A.ITERS = -1
    # Loss of the task: "cross_entropy" or "size_weighted".
    node.TASK_A.LOSS = "cross_entropy"
    # Multiplier (> 0) on every learning rate during the task.
    node.TASK_A.LR_FACTOR = 1.0
    node.TASK_B = CN()
    node.TASK_B.LOSS = "size_weighted"
    node.TASK_B.LR_FACTOR = 1.0
    # Evaluate at the end of task A too, so that the run ends with a table of both tasks.
    node.EVAL_TASK_A = True

    # ---- Elastic weight consolidation (paper, Eq. 5; docs/method.md#fisher-information) ---------
    node.EWC = CN()
    # Strength lambda of the penalty lambda * sum F (theta - theta*)^2, >= 0. 0: no penalty.
    node.EWC.LAMBDA = 500.0
    # Diagonal Fisher information: "online" (moving average of squared batch gradients during
    # task A, min-max normalised; released code) or "empirical" (mean of squared per-image
    # gradients at the end of task A).
    node.EWC.FISHER = "online"
    # Weight of the newest squared gradient in the online estimate, in [0, 1).
    node.EWC.ALPHA = 0.9
    # Number of training images of the empirical estimate, >= 1.
    node.EWC.NUM_IMAGES = 200
    # "gradient": the penalty's gradient joins the loss's (stable only while
    # lr * 2 lambda * max F < 2 (1 + momentum)). "proximal": a closed-form step after the
    # optimiser's own, stable for every lambda.
    node.EWC.STEP = "gradient"

    # ---- Mixed supervision: which training images have masks (docs/mixed.md#the-data) -----------
    node.SUPERVISION = CN()
    # Number of training images, >= 0, drawn by class from all, e.g. for curves over it. 0: all.
    node.SUPERVISION.NUM_IMAGES = 0
    # Share of the training images that keep their masks, in (0, 1], drawn by class. 1: all (images
    # may still say themselves what they have). The paper's is 0.18.
    node.SUPERVISION.MASK_FRACTION = 1.0
    # The other images: "boxes" (a box around each object is all that is known), or "none": they
    # are left out.
    node.SUPERVISION.REST = "boxes"
    # Seed of the draws; -1: SEED, so that runs with other seeds also draw other images.
    node.SUPERVISION.SPLIT_SEED = -1
    # Share of SOLVER.MAX_ITER, in [0, 1), during which images with boxes give way to images with
    # masks. 0: both from the start. A net that knows its classes finds the wrong box labels.
    node.SUPERVISION.BOXES_FROM = 0.0
    # How often an image with a mask comes for every time one with boxes comes, >= 1. 1: as often.
    node.SUPERVISION.MASK_REPEAT = 1
    # Label of a pixel in boxes of several classes: "smaller" = the smallest box's, "interior" = of
    # the box in whose middle it lies deepest, "ignore" = none, "model" = the smallest box's, and
    # while bootstrapping the most probable of these classes (UncertainSegmentor).
    node.SUPERVISION.OVERLAPS = "smaller"
    # Read the masks of box images where they are known, only to log how many labels are true.
    node.SUPERVISION.LOG_ACCURACY = True

    # ---- Label uncertainty, with UncertainSegmentor (docs/method.md#label-uncertainty) ----------
    node.UNCERTAINTY = CN()
    # Sigma divides: "per_class" = each logit by its class's own (the plain form), "object" =
    # the logit of object against background by one: a box's class is certain, and only which
    # pixels the object covers is not. In a binary task they are one.
    node.UNCERTAINTY.FORM = "per_class"
    # sigma that the branch starts from, > 0, in the unit of logits. 0.5 divides a logit by 1.05:
    # labels are believed until the net learns otherwise, and the gradient of sigma is not lost.
    node.UNCERTAINTY.SIGMA_INIT = 0.5
    node.UNCERTAINTY.BOOTSTRAP = CN()
    # Share of SOLVER.MAX_ITER, in [0, 1], after which box pixels of a large sigma take the model's
    # own label, which is certain: half of the run, so that there is a model to ask. 1: never.
    node.UNCERTAINTY.BOOTSTRAP.WARMUP = 0.5
    # Relabelled where sigma of the model's own label is larger, > 0. 2 divides its logit by 1.6.
    node.UNCERTAINTY.BOOTSTRAP.THRESHOLD = 2.0
    # A box in which the model itself sees an object on less than this share of the pixels, in
    # [0, 1), keeps its labels, and they are certain: an object is there, and one that the model
    # does not know yet must not be relabelled as background. 0: no such rule (the plain form).
    node.UNCERTAINTY.BOOTSTRAP.MIN_OBJECT = 0.0

    # ---- Solver --------------------------------------------------------------------------------
    # Exponent of the poly schedule (1 - t/T)^power.
    node.POLY_POWER = 0.9
    # The rate is held for this many iterations (10 in the released code), >= 1.
    node.POLY_HOLD = 1
    # "joint": one poly schedule over both tasks. "separate": each task decays to 0 on its own.
    node.SCHEDULE = "joint"
    # Learning-rate multipliers of the head's weights and biases (backbone: 1).
    node.HEAD_LR_FACTOR = 10.0
    node.HEAD_BIAS_LR_FACTOR = 20.0
    # Weight decay of biases; detectron2's WEIGHT_DECAY_BIAS is None = same as weights.
    node.BIAS_WEIGHT_DECAY = 0.0
    # Backward passes per optimiser step, >= 1; each sees SOLVER.IMS_PER_BATCH images.
    node.ACCUMULATE = 1
    # Number format under SOLVER.AMP.ENABLED: "float16" (with loss scaling) or "bfloat16".
    # On a CPU it is always bfloat16.
    node.AMP_DTYPE = "float16"

    # ---- Speed: results stay the same up to rounding, unless it is said -------------------------
    node.SPEED = CN()
    # Memory format of convolution weights, which activations follow: "contiguous",
    # "channels_last", or "auto" = channels_last on a GPU under SOLVER.AMP, where it is faster.
    node.SPEED.MEMORY_FORMAT = "auto"
    # Convolutions apply a FrozenBN that follows them by scaled weights and a bias: its own passes
    # over the activations are saved.
    node.SPEED.FOLD_FROZEN_BN = True
    # GPU only: batches come from page-locked memory and are copied while the GPU computes.
    node.SPEED.PREFETCH = True
    # Iterations after which losses are fetched from the device, logged and checked for NaN, >= 1;
    # also done before every checkpoint. detectron2 logs every 20. 1: the host waits in each one.
    node.SPEED.LOSS_PERIOD = 20
    # Number of images, >= 0, whose logits are upsampled at once for a loss at LOSS_RESOLUTION
    # "input". 0: all of the batch; 1: the least memory. Without effect on losses with label
    # uncertainty, which need sigma upsampled too (docs/performance.md).
    node.SPEED.LOSS_IMAGES = 0
    # Compile the network of the training step: "off", or a mode of torch.compile: "default" =
    # fused kernels, "reduce-overhead" = as CUDA graphs, too. Evaluation, whose images vary in size,
    # is not compiled. Needs Triton on a GPU and a C++ compiler on a CPU; rounds otherwise.
    node.SPEED.COMPILE = "off"
    # Compile the passes of Fisher information and penalty over all parameters, which then read
    # every tensor once. Needs and rounds as COMPILE.
    node.SPEED.COMPILE_EWC = False

    # ---- Augmentation (docs/method.md#recipe) --------------------------------------------------
    # One of these factors is drawn for every training image.
    node.SCALES = [0.5, 0.75, 1.0, 1.25, 1.5]
    # Height and width of the random training crop; smaller images are padded (mean, ignore).
    node.CROP_SIZE = [321, 321]
    # Probability of a horizontal flip.
    node.FLIP_PROB = 0.5

    # ---- Evaluation (docs/method.md#instance-aware-iou) ----------------------------------------
    # "exact", or "official" for the released code's truncation and filled contours.
    node.METRIC_MODE = "exact"

    # ---- Inference (docs/method.md#recipe) -----------------------------------------------------
    node.TEST = CN()
    # Test images are also predicted at these factors of their size; the predictions are averaged.
    node.TEST.SCALES = [1.0]
    # Predict every scale mirrored too.
    node.TEST.FLIP = False
    # Averaged are: "softmax" = probabilities, "logits" = scores before the softmax.
    node.TEST.AVERAGE = "softmax"
    # Write the figures of every class to results.json and the logged scalars; the run in
    # OUTPUT_DIR/inference has them in any case.
    node.TEST.PER_CLASS = False
    # Fully connected CRF on the averaged probabilities, with its two kernels' weights (>= 0) and
    # standard deviations (> 0; SXY in pixels, SRGB in grey levels of 0..255).
    node.TEST.CRF = CN()
    node.TEST.CRF.ENABLED = False
    # Mean-field iterations, >= 1.
    node.TEST.CRF.ITERATIONS = 10
    # Smoothness kernel.
    node.TEST.CRF.GAUSSIAN_SXY = 1.0
    node.TEST.CRF.GAUSSIAN_WEIGHT = 3.0
    # Appearance kernel.
    node.TEST.CRF.BILATERAL_SXY = 67.0
    node.TEST.CRF.BILATERAL_SRGB = 3.0
    node.TEST.CRF.BILATERAL_WEIGHT = 4.0

    # ---- Pictures for TensorBoard --------------------------------------------------------------
    node.PICTURES = CN()
    # Iterations between two pictures of the first training samples (image, pseudo label, size
    # weights, prediction), >= 0. 0: none.
    node.PICTURES.PERIOD = 1000
    # How many samples, >= 1.
    node.PICTURES.NUM_IMAGES = 4


def task_a_iterations(cfg: CN) -> int:
    """Number of iterations of task A; SOLVER.MAX_ITER when there is no task B."""
    iterations = cfg.SMALLOBJ.TASK_A.ITERS
    return cfg.SOLVER.MAX_ITER if iterations < 0 else iterations


def has_penalty(cfg: CN) -> bool:
    """True if the run reaches a task B with an EWC penalty."""
    return cfg.SMALLOBJ.EWC.LAMBDA > 0 and task_a_iterations(cfg) < cfg.SOLVER.MAX_ITER
