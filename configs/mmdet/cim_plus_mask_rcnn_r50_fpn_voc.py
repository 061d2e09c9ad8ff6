"""CIM+ on VOC 2012 in mmdetection 3.x: Mask R-CNN, ResNet-50-FPN, on the pseudo labels of CIM.

    CIM_PSEUDO_LABELS=Outputs/resnet50_voc/<run>/pseudo_labels/voc2012trainaug.json \\
        python <mmdetection>/tools/train.py configs/mmdet/cim_plus_mask_rcnn_r50_fpn_voc.py

Run it in the folder that `data/` and `Outputs/` lie in. 12 epochs of the 10,582 images of trainaug,
16 images an update, rate 0.02 (for 8 GPUs with 2 images; with another number give --auto-scale-lr).
The detections on VOC 2012 val are written to work_dirs/cim_plus_voc/detections.segm.json, which
tools/evaluate.py reads; it gives AP at IoU 0.25, 0.5, 0.7 and 0.75 (published: 68.7, 55.9, 37.1,
30.9).
"""

_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"

classes = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
metainfo = dict(classes=classes)  # a tuple, with one class too: ("cat",)
images = "data/VOC2012/JPEGImages/"
pseudo_labels = "{{$CIM_PSEUDO_LABELS:pseudo_labels/voc2012trainaug.json}}"
validation = "data/VOC2012/annotations/voc_2012_val.json"

model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))
    )
)

# An image without a pseudo label is left out: it has an object in it that was not found.
train_dataloader = dict(
    dataset=dict(
        data_root="",
        ann_file=pseudo_labels,
        data_prefix=dict(img=images),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )
)
val_dataloader = dict(
    dataset=dict(data_root="", ann_file=validation, data_prefix=dict(img=images), metainfo=metainfo)
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=validation, metric=["segm"], outfile_prefix="work_dirs/cim_plus_voc/detections"
)
test_evaluator = val_evaluator

work_dir = "work_dirs/cim_plus_voc"
