"""CIM+ on COCO 2017 in mmdetection 3.x: Mask R-CNN, ResNet-50-FPN, on the pseudo labels of CIM.

    CIM_PSEUDO_LABELS=Outputs/resnet50_coco2017/<run>/pseudo_labels/coco2017train.json \\
        python <mmdetection>/tools/train.py configs/mmdet/cim_plus_mask_rcnn_r50_fpn_coco.py

Run it in the folder that `data/` and `Outputs/` lie in. 12 epochs, 16 images an update, rate 0.02
(for 8 GPUs with 2 images; with another number give --auto-scale-lr). Published on COCO val2017:
AP 17.0, AP50 29.4, AP75 17.0.
"""

_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"

# Those of the data set, in the order of their ids.
classes = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)
metainfo = dict(classes=classes)  # a tuple
pseudo_labels = "{{$CIM_PSEUDO_LABELS:pseudo_labels/coco2017train.json}}"
validation = "data/coco2017/annotations/instances_val2017.json"

# An image without a pseudo label is left out: it has an object in it that was not found.
train_dataloader = dict(
    dataset=dict(
        data_root="",
        ann_file=pseudo_labels,
        data_prefix=dict(img="data/coco2017/train2017/"),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root="",
        ann_file=validation,
        data_prefix=dict(img="data/coco2017/val2017/"),
        metainfo=metainfo,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=validation, metric=["segm"], outfile_prefix="work_dirs/cim_plus_coco/detections"
)
test_evaluator = val_evaluator

work_dir = "work_dirs/cim_plus_coco"
